"""Every message in English, by its code; see message.py for the notation."""

from __future__ import annotations

MESSAGES: dict[str, str] = {
    "plain": "{text}",
    # phases of a run: lower case, without a full stop
    "phase.loading_libraries": "loading libraries",
    "phase.finding_model": "finding the model",
    "phase.preparing_data": "preparing the data",
    "phase.loading_model": "loading the model",
    "phase.building_trainer": "building the trainer",
    "phase.training": "training",
    "phase.answering": "answering held-out questions",
    "phase.saving": "saving",
    "phase.evaluating": "evaluating",
    "phase.calibrating": "answering the held-out rows",
    "phase.predicting": "predicting",
    "phase.writing_results": "writing results",
    "phase.registering": "registering the adapter",
    "phase.serving": "serving",
    "phase.copying": "copying",
    "phase.asking": "asking three prompts",
    "phase.merging": "merging",
    "phase.quantizing": "quantizing",
    "phase.writing_gguf": "writing GGUF",
    "phase.uploading": "uploading",
    "phase.closing": "closing",
    # how far a phase is
    "doing.rows_read": "{name}: {done:,} rows read",
    "doing.rows_ready": "{kept:,} of {read:,} rows are ready",
    "doing.questions": "{done} of {total} questions answered",
    "doing.answers": "{done} of {total} answers",
    "doing.pairs": "{done} of {total} pairs",
    "doing.records": "{done:,} of {total:,} records answered",
    "doing.batches": "{done}[ of {total}] batches measured",
    "doing.serving": "{answered:,} requests answered[, {running} answers being written]",
    "doing.reading_weights": "reading the weights",
    "doing.asking": "asking three prompts",
    "doing.writing": "writing {name}",
    # why a run ended
    "out_of_memory": "Out of memory[ on the {where}]: batch {batch} at up to {cutoff} tokens does not fit. "
    "Halve the batch and double accumulation, or shorten the cutoff.",
    "out_of_memory.killed": "The system killed the worker[ at step {step}| before its first step] because memory ran out "
    "(oom_kill in its control group).[ {checkpoint} is kept.] "
    "Halve the batch and double accumulation, or shorten the cutoff.",
    "non_finite": "The loss became NaN or infinite[ ({evidence})]. "
    "Nothing was registered; lower the learning rate and start again.",
    "disk_full": "The disk is full[ ({evidence})]. "
    "The last complete checkpoint is kept; free some space, then resume.",
    "missing_library": "The library {name} is not installed; run `pip install {name}`, then start again, or drop the knob "
    "that asks for it.",
    "missing_file": "{name} is missing; put it back or name another one, then resume.",
    "not_writable": "{name} may not be read or written by this user; change its permissions, then resume.",
    "tracker_down": "MLflow could not be reached: {detail} `tuner sync` sends what is missing.",
    "unsafe_file": "A file of the checkpoint or model holds more than numbers, which could run code when it is opened; it "
    "was not opened. Go on from a checkpoint that you trust, or start afresh.",
    "error": "{kind}[: {detail}] See the log for details.",
    "error.at": "{kind} in {function} ({file}, line {line}). See the log for details.",
    "error.exit": "The worker ended with exit code {exit_code}[ at step {step}| before its first step]: [{line}|its log is empty.][ {checkpoint} is kept.]",
    "error.not_started": "The worker could not be started: {detail}.",
    "rank": "Rank {number} ({count} processes): {why}",
    "rebooted": "The machine was restarted while the run was[ at step {step}| before its first step].[ {checkpoint} is kept.]",
    "killed": "The worker was killed by {signal}[ at step {step}| before its first step].[ {checkpoint} is kept.]",
    "signal": "signal {number}[ ({name})]",
    "killed.unseen": "The worker died[ at step {step}| before its first step] unobserved, most likely killed from outside.[ {checkpoint} is kept.]",
    "killed.starting": "The worker died while starting,[ at step {step}| before its first step] unobserved, most likely killed from outside.[ {checkpoint} is kept.]",
    "node_lost": "What it ran on is gone[, at step {step}|, before its first step]: {why}[ {checkpoint} is kept.]",
    "lost.job": "the cluster's job has [{state}|vanished][: {said}].",
    "lost.silent": "its node gave no sign of life for {seconds:.0f} s.",
    # why a cluster takes no run
    "cluster.away": "Waits for the cluster: {address} does not answer ({why}).",
    "cluster.no_agent": "Waits for the cluster: {address} answers, but takes no jobs (no agent on its head).",
    "cluster.token": "Waits for the cluster: {address} wants a token; set RAY_AUTH_TOKEN where the studio is started.",
    "cluster.refused": "Waits for the cluster: {address} takes no run (status {status}: {why}).",
    "cluster.pending": "Waits for room in the cluster, on one node: cores {cpus}[, GPUs {gpus} (where it has none, set use_cpu)].",
    "cancelled": "Cancelled. Unsaved progress is lost.",
    "stopped": "Stopped at step {step}; Resume continues from there.",
    "stopped.unsaved": "Stopped before there was anything to save.",
    "stopped.dead": "Stopped[ at step {step}, before it could save| before its first step].[ {checkpoint} is kept.| Nothing was saved.]",
    "stopped.served": "Stopped; the model is no longer loaded.",
    "stopped.idle": "Nobody asked for {minutes:g} minutes, so the model was unloaded.",
    "stopped.claimed": "The run {name} waited for this slot, so the model was unloaded.",
    "stopped.queued": "Cancelled while queued.",
    "stopped.waiting": "Interrupted while queued.",
    "stopped.turn": "Stopped while it waited for its turn.",
    "stopped.not_now": "{before}; `tuner submit` queues this run, or wait until it has ended.",
    # what a run waits for that may not wait
    "before.room": "Waits for room: only {free} MiB of disk are free",
    "before.running": "Run {holders} is running on {choice}",
    "before.queued": "Run {ahead} is before it in the queue",
    "before.freed": "The slot is being freed",
    "lost": "Whatever was making this run ended before the run was in the queue; submit it once more.",
    # how an answer of a model ended before its end
    "answer.stopped": "Stopped.",
    "answer.left": "Stopped, because the page was closed; ask again.",
    "answer.cut": "Truncated at max new tokens; allow more tokens to read on.",
    "answer.lost": "The dashboard ended while this was written; ask again.",
    # remedies
    "remedy.resume": "Resume from the last checkpoint",
    "remedy.halve_batch": "Halve the batch, accumulate twice as often",
    "remedy.checkpointing": "Turn gradient checkpointing on",
    "remedy.shorten": "Shorten the cutoff to {cutoff_len} tokens",
    "remedy.learning_rate": "Learning rate {learning_rate:.0e}",
    "remedy.bf16": "bf16 in place of fp16",
    "remedy.fix": "Fix it",
    # notes on a run's page
    "note.engine_packed": "Engine: packed rows.",
    "note.engine_trl": "Engine: TRL, because {why}",
    "note.engine_padded": "Engine: padded sequences, because {why}",
    "note.engine_other": "Before launch the other engine was planned: what was loaded said more than its description.",
    "note.less_memory": "Rows hold {tokens:,} tokens and {recompute} of {layers} layers are recomputed, not {planned:,} and "
    "{planned_recompute} as planned: less memory was free than before launch.",
    "note.few_questions": "The probabilities of {types} questions are as they were learnt: a temperature is fitted from "
    "{least} questions with gold on, kept aside by --val_size or --eval_dataset.",
    "computed_by.packed": "Packed",
    "computed_by.trl": "TRL",
    "computed_by.padded": "Padded",
    # why the packed engine does not take a run
    "engine.kind": "{label} has no packed rows.",
    "engine.begun": "the run began with it and keeps it.",
    "engine.asked": "engine is trl.",
    "engine.streamed": "rows are streamed, and the reference's answers could not be kept.",
    "engine.losses": "pref_loss mixes several losses or is TRL's own.",
    "engine.token_loss": "label_smoothing_factor, use_eaft_loss and use_asft_loss need every token's logits.",
    "engine.method": "finetuning_type is {finetuning_type}, not lora.",
    "engine.continued": "the reference is the adapter that training continues from.",
    "engine.pissa": "PiSSA changes the weights that the reference would be.",
    "engine.optim": "optim is {optim}.",
    "engine.own_optimizer": "its optimizer takes gradients in a way of its own.",
    "engine.attention_dropout": "the model's attention has dropout.",
    "engine.reference": "a separate reference model is given.",
    "engine.fp16": "fp16 needs loss scaling; use bf16.",
    "engine.sharded": "the model is spread over several processes.",
    "engine.running_mean": "pref_bco_weight keeps a running mean of rewards over several processes.",
    "engine.neftune": "neftune_noise_alpha adds noise to the embeddings.",
    "engine.quantized": "the base model is quantized by another library than bitsandbytes.",
    "engine.whole_modules": "whole modules are trained beside the adapter (additional_target, or tokens that were added).",
    "engine.adapter": "its adapter is not LoRA.",
    "engine.more_than_text": "the model takes more than text.",
    "engine.looks": "the part of the model that sees pictures is trained too; packed rows need --freeze_vision_tower and --freeze_multi_modal_projector True.",
    "engine.rotary": "its rotary embedding ({kind}) depends on the length of the input.",
    "engine.no_decoder": "it is not a decoder with a plain language model head.",
    "engine.balance": "moe_aux_loss_coef balances experts over padded batches.",
    "engine.logits": "it rescales its logits.",
    "engine.attention": "its attention is not plain causal attention.",
    "engine.fixed_attention": "its attention cannot be replaced.",
    "note.other_template": "{label} was taught in a chat template of its own, and is asked in its base's here; --template asks all "
    "versions in another one.",
    "note.not_asked": "Not asked: {count:,} rows, because of {reason}.",
    "note.resumed": "Went on from {checkpoint} (step {step} of {total}).",
    "note.other_processes": "The checkpoint is of another number of processes ({before}), and this run has {now}: random draws (dropout) differ from here on.",
    "note.other_batch": "A step is {now} examples now and was {before} before the checkpoint: steps and what is left of the epoch "
    "are counted anew.",
    "note.resumed_by_itself": "The machine was restarted[ at step {step}]; the run went on by itself from "
    "[{checkpoint}|the beginning].[ Passed over, damaged: {damaged}]",
    "note.passed_over": "Passed over, damaged: {damaged}",
    "note.unregistered": "The adapter is in {folder}, but not yet registered: {detail} `tuner sync` does it.",
    "note.kto_one_prompt": "All rows ask the same, so that no answer belongs to another prompt: KTO's distance is not a "
    "real one.",
    "note.kto_only_good": "All answers are marked good: KTO can only raise them, with nothing to hold against; "
    "add some that are bad, or use stage sft for good ones alone.",
    "note.kto_only_bad": "All answers are marked bad: KTO can only lower them, with nothing to hold against; "
    "add some that are good.",
    # an export
    "note.exported": "The export is in {folder}.",
    "note.pushed": "It was uploaded to {address}.",
    "note.gguf_window": "llama.cpp has no sliding window for this model: up to {window:,} tokens both answer alike, so the file "
    "says that it reads {window:,} and not {longest:,}.",
    "note.gguf_longrope": "llama.cpp chooses the factors for long texts by the context it is started with: up to {before:,} tokens "
    "start it with no more than that, or short texts are read with those for long ones.",
    "note.gguf_unread": "The file was not read back, neither its tokenizer nor its answers: run `pip install xllamacpp` for that.",
    "note.gguf_refused": "The file was written, but could not be read back: {detail}.",
    "note.modelfile_without": "The Modelfile has no TEMPLATE: the chat template is no row of turns, which is all that Ollama knows.",
    "note.tokens_differ": "llama.cpp splits {differ} of {texts} texts otherwise than the model learned, for example {first!r}.",
    # what rewards say of answers
    "reward.labels": "Of the first {asked:,} prompts {share:.0%} have a label, the answer that their row expects.",
    "reward.unsaid": "No reward scored any of {count:,} answers: rewards that use a label, tools or a column need rows that have them.",
    "reward.same": "All {count:,} answers got the same reward, {value}: there is nothing to learn from that. Choose a reward that "
    "tells answers apart (slack for lengths, a second reward), or teach the behaviour first with some steps of sft.",
    "reward.differ": "Of {count:,} answers {best:,} got more than half of what there is between {lowest} and {highest}: there is "
    "something to learn.",
    "reward.no_signal": "Nothing to learn: in the last {steps:,} logged steps all answers got the same reward, so that none is better "
    "than another. {why}",
    "reward.no_signal.each": "Nothing to learn: in the last {steps:,} logged steps all answers to each prompt got the same reward, so "
    "that none is better than another. {why}",
    "reward.learnt": "Nothing left to learn: in the last {steps:,} logged steps all answers got the same reward, and it is as high as "
    "any before. End the run, or give it harder prompts.",
    "reward.learnt.each": "Nothing left to learn: in the last {steps:,} logged steps all answers to each prompt got the same reward, "
    "and it is as high as any before. End the run, or give it harder prompts.",
    "reward.no_signal.low": "Choose a reward that tells answers apart (slack for lengths, a second reward), raise temperature[ or "
    "{more}], or teach the behaviour first with some steps of sft.",
    "reward.little_signal": "Little to learn: in {share:.0%} of the groups of the last {steps:,} logged steps all answers got the same "
    "reward. A reward that tells answers apart, or more answers to a prompt (num_generations), gives more.",
    # the tracker, as a run's page tells of it
    "tracker.pending": "The run is over, but MLflow does not have all of it yet; `tuner sync` sends the rest.",
    "tracker.failed": "The tracker failed: {kind}: {detail}",
    # a worker that makes no progress
    "stalled": "No progress for {idle:.0f} s[; a step usually takes {usual:.1f} s]. Look at the log; Stop ends it and keeps the last "
    "checkpoint.",
    "stalled.suspended": "No progress for {idle:.0f} s[; a step usually takes {usual:.1f} s]. Its process is suspended (SIGSTOP). Look "
    "at the log; Stop ends it and keeps the last checkpoint.",
}
