"""The model that MLflow loads for a registered adapter: this file is copied beside the weights, whole.

So it imports nothing of the studio, and torch only when it is loaded. The base model is named, not copied.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import mlflow.pyfunc


class Adapter:
    """Base and adapter, with `.model` and `.tokenizer`.

    A base that brings Python files of its own is refused, unless whoever loads it says
    `load_model(uri, model_config={"trust_remote_code": True})`.
    """

    def load_context(self, context: Any) -> None:
        """Load the base, put the adapter on it. A folder without adapter_config.json is a whole model."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

        settings = context.model_config or {}
        folder = Path(context.artifacts["adapter"])
        is_adapter = (folder / "adapter_config.json").is_file()
        dtype = getattr(torch, settings.get("dtype", "float32"))
        trusted = bool(settings.get("trust_remote_code", False))
        whole = settings["base"] if is_adapter else folder
        revision = settings.get("revision") if is_adapter else None
        try:
            shape = AutoConfig.from_pretrained(whole, trust_remote_code=trusted, revision=revision)
            sees = hasattr(shape, "vision_config")
            kind = AutoModelForImageTextToText if sees else AutoModelForCausalLM
            model: Any = kind.from_pretrained(
                whole, dtype=dtype, trust_remote_code=trusted, revision=revision
            )
        except ValueError as error:
            if trusted or "trust_remote_code" not in str(error):
                raise
            raise ValueError(
                f"{settings['base']} brings Python files of its own, which can do anything you can do here; if you trust "
                'its author, load it with model_config={"trust_remote_code": True}.'
            ) from error
        if is_adapter:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, folder)
        self.model = model.eval()
        tokens = folder if (folder / "tokenizer_config.json").is_file() else settings["base"]
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(tokens, trust_remote_code=trusted)
        except (OSError, ValueError):
            self.tokenizer = None  # logits can still be asked for by ids

    def logits(self, ids: list[list[int]]) -> Any:
        """Logits of token ids, shape (rows, tokens, vocabulary)."""
        import torch

        with torch.no_grad():
            return self.model(torch.tensor(ids, device=self.model.device)).logits

    # No type hints here: MLflow would take them for the schema and drop the one it is given.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """The model's answer to each prompt. Params: max_new_tokens, temperature (0: always the likeliest token)."""
        import torch

        if self.tokenizer is None:
            raise ValueError(
                "This adapter was registered without a tokenizer; give it token ids with logits()."
            )
        params = params or {}
        prompts = model_input.iloc[:, 0].tolist() if hasattr(model_input, "iloc") else list(model_input)
        temperature = float(params.get("temperature", 0.0))
        chosen: dict[str, Any] = {"do_sample": temperature > 0}
        if temperature > 0:
            chosen["temperature"] = temperature
        answers = []
        for prompt in prompts:
            ids = self._ids(str(prompt)).to(self.model.device)
            with torch.no_grad():
                made = self.model.generate(
                    input_ids=ids, max_new_tokens=int(params.get("max_new_tokens", 128)), **chosen
                )
            answers.append(self.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))
        return answers

    def _ids(self, prompt: str) -> Any:
        if not self.tokenizer.chat_template:
            return self.tokenizer(prompt, return_tensors="pt").input_ids
        turn = [{"role": "user", "content": prompt}]
        return self.tokenizer.apply_chat_template(
            turn, add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).input_ids


class AdapterModel(Adapter, mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """What `unwrap_python_model()` gives. `predict` is inherited, for MLflow grumbles at one of its own without hints."""


mlflow.models.set_model(AdapterModel())
