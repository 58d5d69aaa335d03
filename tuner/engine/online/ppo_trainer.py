"""`PpoTrainer`: a step is a round of PPO, the writing of a buffer of answers and several passes over it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import ExportableState

from tuner.config.config import Config
from tuner.engine.choice import settings_of
from tuner.engine.live import LiveRun
from tuner.engine.online import build, ppo, scoring
from tuner.engine.online.experience import BY_BATCH, Experience
from tuner.engine.online.kl import AdaptiveWeight
from tuner.engine.online.padded_policy import PaddedPolicy
from tuner.engine.online.ppo import PpoObjective, Round, RunningSpread, round_of
from tuner.engine.online.rollouts import Rollouts
from tuner.engine.online.trainer import Lesson, OnlineTrainer
from tuner.engine.packed.policy import Policy
from tuner.engine.packed.units import Floats, Unit
from tuner.engine.setup import Start
from tuner.engine.trainer import arguments
from tuner.models.llama_family import causal_lm
from tuner.plan.rows import RowBudget

VALUE_HEAD = "value_head.safetensors"


class Keeper(TrainerCallback, ExportableState):
    """What PPO remembers from round to round: the weight of the distance and the spread of scores. A callback, so that it
    is saved in a checkpoint and restored from it."""

    def __init__(self, target: float = 6.0, weight: float = 0.2, mean: float = 0.0, variance: float = 1.0,
                 count: float = 1e-24):  # fmt: skip
        self.weight, self.spread = AdaptiveWeight(target, weight), RunningSpread(mean, variance, count)

    def state(self) -> dict[str, Any]:
        spread = self.spread
        said = {"target": self.weight.target, "weight": self.weight.value}
        said |= {"mean": spread.mean, "variance": spread.variance, "count": spread.count}
        return {"args": said, "attributes": {}}


class PpoTrainer(OnlineTrainer):
    """Learns a policy and, in a head of its own, what to expect of it."""

    def __init__(self, *args: Any, config: Config, **options: Any) -> None:
        self.config = config
        self.value_head = nn.Linear(causal_lm(args[0]).config.get_text_config().hidden_size, 1)
        self.round: Round | None = None
        self.seen: list[Floats] = []
        super().__init__(*args, **options)
        self.value_head.to(self.args.device)
        self.add_callback(Keeper(config.ppo_target))

    @property
    def keeper(self) -> Keeper:
        return next(c for c in self.callback_handler.callbacks if isinstance(c, Keeper))

    @property
    def steps_each(self) -> int:
        """A round is one step."""
        return 1

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> Tensor:
        """A round: answers, then optimizer steps on them, of which the Trainer makes the last. Returns the mean loss."""
        runner, began, number = self.prepare(), time.perf_counter(), self.state.global_step
        learnt = self.experience(number)
        written, losses = time.perf_counter(), []
        for update in range(self.schedule.updates):
            if update:
                if self.args.max_grad_norm > 0:  # 0 is no limit, as to the Trainer
                    self.clip_gradients(None, self.args.max_grad_norm)
                self.optimizer.step()
            again = update // self.config.ppo_buffer_size
            batches = self.schedule.micro_batches(self.schedule.mixed(number, again), update)
            weights = learnt.weights(batches, BY_BATCH, self.lesson.longest)
            result = self._learn(runner, self._units(learnt, weights))
            losses.append(result.loss)
        self._finish(result, began, written)
        return torch.stack(losses).mean()

    def _teaches(self, unit: Unit) -> bool:
        """Values are learnt from every answer."""
        return True

    def _scored(self, made: Rollouts, generation: int) -> Experience:
        learnt, runner = self._answered(made, generation), self.prepare()
        assert self.reference is not None
        learnt.kept &= ~np.isnan(made.rewards)  # an answer of which nothing was said is no answer worth 0
        self.seen = scoring.token_scores(runner, learnt, self._together)
        learnt.old = [one[0] for one in self.seen]
        learnt.reference = scoring.log_probs(runner, learnt, self._together, self.reference)
        scores = torch.from_numpy(np.nan_to_num(made.rewards))
        self.measure(scoring.measured(made, scores[:, None], self.sources.rewards))
        if self.config.ppo_score_norm:
            scores = self.keeper.spread.norm(scores)
        weight = self.keeper.weight
        self.round = round_of(
            scores.tolist(),
            _tensors(learnt.old),
            _tensors(learnt.reference),
            _tensors([one[3] for one in self.seen]),
            weight.value,
            self.config.ppo_whiten_rewards,
        )
        self.measure({"kl": self.round.distance, "kl_weight": weight.value})
        weight.update(self.round.distance, len(scores))
        learnt.advantages = np.array([float(a.mean()) for a in self.round.advantages], np.float32)
        return learnt

    def _units(self, learnt: Any, weights: Any) -> list[Unit]:
        return [
            Unit(unit.prompt, unit.answers, values=tuple(self._beside(i, learnt, weights) for i in answers))
            for unit, answers in learnt.placed(weights, self._together)
        ]

    def _beside(self, answer: int, learnt: Experience, weights: Floats) -> Floats:
        assert self.round is not None
        advantage, wanted = self.round.advantages[answer], self.round.returns[answer]
        old, value = self.seen[answer][0], self.seen[answer][3]
        weight = np.full_like(old, weights[answer])
        return np.stack([weight, advantage.numpy(), old, value, wanted.numpy()])

    def _means(self, totals: Any) -> dict[str, float]:
        return ppo.finished(totals)

    def _policy(self, rows: RowBudget) -> Policy:
        made: Policy = PaddedPolicy(self.model, self.accelerator.autocast, value_head=self.value_head)
        made.recompute = rows.recompute
        return made

    # --- the value head beside the model

    def create_optimizer(self, model: Any = None) -> Any:
        """The optimizer of the model's weights, with the value head's."""
        optimizer = super().create_optimizer(model)
        weights = list(self.value_head.parameters())
        if not any(p is weights[0] for group in optimizer.param_groups for p in group["params"]):
            optimizer.add_param_group({"params": weights, "weight_decay": 0.0})
        return optimizer

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if not self.args.should_save:
            return
        head = {
            "v_head.summary.weight": self.value_head.weight.detach().cpu().contiguous(),
            "v_head.summary.bias": self.value_head.bias.detach().cpu(),
        }
        save_file(head, Path(output_dir or self.args.output_dir) / VALUE_HEAD, metadata={"format": "pt"})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_head(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._load_head(Path(str(self.state.best_model_checkpoint)))

    def _load_head(self, folder: Path) -> None:
        head = load_file(folder / VALUE_HEAD)
        with torch.no_grad():
            self.value_head.weight.copy_(head["v_head.summary.weight"])
            self.value_head.bias.copy_(head["v_head.summary.bias"])


def _tensors(parts: Any) -> list[Tensor]:
    return [torch.from_numpy(np.ascontiguousarray(part)) for part in parts]


def trainer_of(config: Config, run: LiveRun, start: Start) -> PpoTrainer:
    """The trainer of a PPO run. Raises ConfigError where the prompts make no batch."""
    fresh = build.with_adapter(config, start)
    sources = build.sources_of(config, run, start)
    torch.manual_seed(config.seed)  # the value head is drawn
    build.is_padded(config, run, start)
    return PpoTrainer(
        start.model,
        arguments(TrainingArguments, config, run, start.plan),
        sources,
        Lesson(lambda rewards: rewards, longest=config.max_new_tokens),
        PpoObjective(),
        config=config,
        reference=build.reference_of(config, start, fresh),
        held_out=build.held_out_of(config, run, start, sources),
        padded=True,
        engine=settings_of(config, start),
        eval_dataset=start.rows.eval or None,
        processing_class=start.tokenizer,
    )
