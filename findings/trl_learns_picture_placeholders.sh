#!/usr/bin/env bash
# trl 1.16.0, transformers 5.23.0, torch 2.13.0, pillow 12.0.0
#
# Behaviour: SFTTrainer on chats with pictures (`messages` and `images`, its defaults) takes a loss on the tokens that stand for a picture:
# labels are the ids, and padding alone is left out. The model learns to write placeholders, and the mean over tokens is mostly theirs.
# Seen: of 78 labels of a row 64 are the placeholder of its one picture; the loss that is logged, 3.03, is the mean over all of them, and
# that of the words is 2.89 (a model that knows nothing yet).
# Why a good guess is wrong: nobody predicts a picture's placeholders, and the collators that circulate for vision models set them to -100,
# as did those of TRL's own examples. A run's loss falls quickly to a small number and says little of the answers; curves of runs whose
# pictures have other sizes cannot be compared. completion_only_loss and assistant_only_loss leave them out, both off here by default.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.23.0 trl==1.16.0 pillow==12.0.0
cd "$work"
HF_HUB_OFFLINE=1 "$work/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from datasets import Dataset
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForImageTextToText, Idefics3Processor, PreTrainedTokenizerFast
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from trl import SFTConfig, SFTTrainer

OWN = ["<pad>", "<end>", "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<user>", "<assistant>"]
WORDS = ["what", "colour", "is", "this", "red", "blue", "a", "square", "Ċ", "\n"]
words = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*OWN, *WORDS, "<unk>"])}, unk_token="<unk>"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=words, pad_token="<pad>", eos_token="<end>", additional_special_tokens=OWN[2:]
)
chat = (
    "{% for m in messages %}<{{ m.role }}> {% for part in m.content %}"
    "{% if part.type == 'image' %}<image> {% else %}{{ part.text }} {% endif %}{% endfor %}<end> {% endfor %}"
)
pictures = Idefics3ImageProcessorPil(
    size={"longest_edge": 112}, max_image_size={"longest_edge": 112}, do_image_splitting=False
)
processor = Idefics3Processor(pictures, tokenizer, image_seq_len=64, chat_template=chat)

picture = tokenizer.convert_tokens_to_ids("<image>")
torch.manual_seed(0)
config = AutoConfig.for_model(
    "idefics3", image_token_id=picture, scale_factor=1, tie_word_embeddings=False,
    text_config=dict(model_type="llama", vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                     num_attention_heads=2, num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=1),
    vision_config=dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=112, patch_size=14),
)
rows = Dataset.from_list([
    {"messages": [{"role": "user", "content": "what colour is this"}, {"role": "assistant", "content": "a red square"}],
     "images": [Image.new("RGB", (112, 112), (255, 0, 0))]}
])
args = SFTConfig(
    output_dir="out", use_cpu=True, bf16=False, max_steps=1, logging_steps=1, per_device_train_batch_size=1, learning_rate=0.0,
    save_strategy="no", report_to=[], disable_tqdm=True,
)
trainer = SFTTrainer(AutoModelForImageTextToText.from_config(config), args, train_dataset=rows, processing_class=processor)
batch = next(iter(trainer.get_train_dataloader()))
labels = batch["labels"]
learnt, theirs = int((labels != -100).sum()), int((labels == picture).sum())
print(f"{learnt} labels, of which {theirs} stand for the picture")
trainer.train()
logged = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
with torch.no_grad():
    logits = trainer.model(**{k: v for k, v in batch.items() if k != "labels"}).logits[0, :-1].float()
each = torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="none", ignore_index=-100)
said = labels[0, 1:] != picture
print(f"logged {logged:.4f}, mean over all {each.mean():.4f}, over the words {each[said].mean():.4f}")
assert theirs == 64 and learnt > theirs, (learnt, theirs)
assert abs(logged - float(each.mean())) < 1e-3 < abs(logged - float(each[said].mean()))
PYTHON
