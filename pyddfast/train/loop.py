"""The training loop: one object that is stepped, saved and restored."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pyddfast.nn import fuse_norm_relu_pool
from pyddfast.random import Purpose, generator, permutation
from pyddfast.train.batch_norm import has_batch_norm, synchronise
from pyddfast.train.distributed import Ranks, divide
from pyddfast.train.execution import Execution
from pyddfast.train.labels import LabelSource
from pyddfast.train.plan import Plan
from pyddfast.train.recipes import Recipe
from pyddfast.train.views import Views

__all__ = ["Trainer", "check_batches", "deterministic_mode", "learning_rate", "make_optimizer"]


def learning_rate(recipe: Recipe, step: int, total_steps: int) -> float:
    """Learning rate of optimiser step ``step`` (from 0) of ``total_steps``.

    The recipe's epochs are scaled to the whole training: a milestone at 151 of 300 epochs is passed
    after 151/300 of the steps whatever the budget, and warm-up takes its share likewise.
    """
    if recipe.schedule == "constant":
        return recipe.lr
    if recipe.schedule in ("step", "step-reset"):
        return recipe.lr * (recipe.gamma if step >= milestone_step(recipe, total_steps) else 1.0)
    warmup = round(total_steps * recipe.warmup_epochs / recipe.epochs)
    if step < warmup:
        return recipe.lr * (step + 1) / warmup
    share = (step - warmup) / max(1, total_steps - warmup)
    return recipe.lr * 0.5 * (1.0 + math.cos(math.pi * share / recipe.cosine_stretch))


def milestone_step(recipe: Recipe, total_steps: int) -> int:
    """First optimiser step at the lower learning rate of the step schedules."""
    return round(total_steps * recipe.milestone / recipe.epochs)


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser over the model's trainable parameters.

    Raises:
        ValueError: the model has none.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("the model has no trainable parameters")
    groups: list[dict[str, Any]] = [{"params": parameters}]
    if not recipe.decay_vectors:
        matrices = [p for p in parameters if p.ndim > 1]
        vectors = [p for p in parameters if p.ndim <= 1]
        groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            groups,
            lr=recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.nesterov and recipe.momentum > 0,
        )
    return torch.optim.AdamW(
        groups, lr=recipe.lr, betas=recipe.betas, weight_decay=recipe.weight_decay
    )


def check_batches(
    model: nn.Module,
    plan: Plan,
    world: int = 1,
    execution: Execution = Execution(),  # noqa: B008 frozen
) -> None:
    """Refuse a plan with a batch of one image for a model with batch norm.

    Args:
        model: that is to be trained.
        plan: what each step sees.
        world: processes that divide each batch; every one needs an image, two where it has batch
            norm of its own.
        execution: tells whether it has.

    Raises:
        ValueError: so it is.
    """
    smallest = plan.smallest_batch
    needed = 2 if has_batch_norm(model) and execution.batch_norm == "rank" else 1
    if world > 1 and smallest // world < needed:
        raise ValueError(
            f"{plan} has a batch of {smallest} images, and {world} processes need "
            f"{needed} each: change batch_size, the budget or the number of processes"
        )
    if smallest > 1:
        return
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ValueError(
                f"the model's {name or 'module'} is batch norm, which cannot train on a batch of "
                f"one image, and {plan} has one: change batch_size or the budget"
            )


class Trainer:
    """One training in progress: model, optimiser and counters.

    Random choices depend on (seed, sample, visit) and (seed, step) alone, so that a restored
    trainer continues exactly.

    Args:
        model: on the training device; trained in place.
        recipe: optimiser and schedule.
        plan: which images each step sees.
        views: makes a batch.
        labels: gives its loss.
        seed: of the order of each epoch, and of stochastic layers.
        execution: how the passes are computed.
        ranks: processes that divide every batch among them, each with a model of equal weights.
        order: the images of an epoch in their order, int64 (N,); None: drawn from ``seed``.

    Attributes:
        model: with the weights that are trained; its instance norms may be replaced, under
            ``ranks`` its batch norms.
        averaged: with their moving average, where the recipe has one.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        plan: Plan,
        views: Views,
        labels: LabelSource,
        *,
        seed: int,
        execution: Execution = Execution(),  # noqa: B008 frozen
        ranks: Ranks = Ranks(),  # noqa: B008 frozen
        order: Callable[[int], Tensor] | None = None,
    ) -> None:
        check_batches(model, plan, ranks.world, execution)
        self.recipe, self.plan = recipe, plan
        self.views, self.labels, self.seed, self.order = views, labels, seed, order
        self.execution, self.ranks = execution, ranks
        self.device = next(model.parameters()).device
        execution.check(self.device)
        if execution.fused:
            model = fuse_norm_relu_pool(model)
        if execution.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        shared = ranks.world > 1 and execution.batch_norm == "sync"
        # What a pass needs in each process: two images for batch norm of its own.
        self._images_a_pass = 2 if has_batch_norm(model) and not shared else 1
        if shared:
            model = synchronise(model, ranks.gradients or ranks.group)
        self.model = model
        self.optimizer = make_optimizer(model, recipe)
        self.averaged: AveragedModel | None = None
        if recipe.ema is not None:
            average = get_ema_multi_avg_fn(recipe.ema)  # type: ignore[no-untyped-call]
            self.averaged = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
        self._parallel: DistributedDataParallel | None = None
        if ranks.world > 1:
            # Every pass starts from the first process's running statistics.
            self._parallel = DistributedDataParallel(
                model, process_group=ranks.gradients or ranks.group
            )
        self._network = _compiled(self._parallel or model, execution)
        self.step = 0
        self.visits = torch.zeros(plan.count, dtype=torch.int64)
        self.total_steps = plan.total_steps
        self._orders: dict[int, Tensor] = {}
        # Training loss since it was last read, kept on the device: no wait in a step.
        self.loss_sum = torch.zeros((), device=self.device)
        self.loss_steps = 0
        # Sees the logits of each step and whose they are.
        self.on_logits: Callable[[Tensor, Tensor], None] | None = None
        # Only models with dropout and the like draw from torch's global generator in a step.
        self._stochastic = any("drop" in type(m).__name__.lower() for m in model.modules())
        self._step_seed = generator(seed, Purpose.LAYERS).initial_seed()

    @property
    def done(self) -> bool:
        """All steps taken."""
        return self.step >= self.total_steps

    def run_step(self) -> None:
        """Take one optimiser step."""
        ids = self._ids(self.step)
        lr = learning_rate(self.recipe, self.step, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if self.recipe.schedule == "step-reset" and self.step == milestone_step(
            self.recipe, self.total_steps
        ):
            self.optimizer.state.clear()
        self.model.train()
        self._gradient(ids)
        self.optimizer.step()
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)
        self.loss_steps += 1
        self.visits[ids] += 1
        self.step += 1

    def _gradient(self, ids: Tensor) -> None:
        """Set the parameters' gradients to those of the batch ``ids``."""
        self.optimizer.zero_grad(set_to_none=True)
        passes = self._passes(len(ids))
        for part in passes:
            # Gradients go to the other processes with the last pass.
            waits = self._parallel is not None and part is not passes[-1]
            with self._parallel.no_sync() if waits and self._parallel else nullcontext():
                self._pass(ids, part)

    def _ids(self, step: int) -> Tensor:
        """The images of a step's batch."""
        epoch, start, stop = self.plan.locate(step)
        if epoch not in self._orders:
            if self.order is None:
                order = permutation(self.seed, Purpose.EPOCH_ORDER, self.plan.count, epoch)
            else:
                order = self.order(epoch)
            kept = {k: v for k, v in self._orders.items() if k == epoch - 1}
            self._orders = {**kept, epoch: order}
        return self._orders[epoch][start:stop]

    def _passes(self, count: int) -> list[slice]:
        """This process's parts of a batch of ``count`` images, one for each pass."""
        mine = divide(count, self.ranks.world)[self.ranks.rank]
        # A last, smaller batch may not give every pass its images.  All processes take as many
        # passes, since synchronised batch norm lets each pass wait for the others'.
        most = count // self.ranks.world // self._images_a_pass
        return [
            slice(mine.start + part.start, mine.start + part.stop)
            for part in divide(mine.stop - mine.start, max(1, min(self.execution.accumulate, most)))
        ]

    def _pass(self, ids: Tensor, part: slice) -> None:
        """Add the gradient of a part of the batch ``ids``."""
        mine = ids[part]
        views = self.views(ids, self.visits[ids], self.step, part)
        self._prefetch(ids, part)
        if self.execution.channels_last:
            views = views.to(memory_format=torch.channels_last)
        if self.execution.cuda_graph:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        with self.execution.autocast(self.device):
            with self._layers_generator(part.start):
                logits = self._network(views)
            loss = self.labels.loss(logits, mine.to(self.device), views)
        share = len(mine) / len(ids)
        # The mean over processes that DistributedDataParallel takes is undone.
        (loss * (share * self.ranks.world)).backward()  # type: ignore[no-untyped-call]
        if self.on_logits is not None:
            self.on_logits(logits.detach(), mine)
        self.loss_sum += loss.detach() * share

    def _prefetch(self, ids: Tensor, part: slice) -> None:
        """Let views that read files begin with the next pass."""
        prefetch = getattr(self.views, "prefetch", None)
        if prefetch is None:
            return
        passes, step = self._passes(len(ids)), self.step
        rest = passes[passes.index(part) + 1 :]
        if not rest:
            step += 1
            if step >= self.total_steps:
                return
            ids = self._ids(step)
            rest = self._passes(len(ids))
        prefetch(ids, step, rest[0])

    @property
    def result(self) -> nn.Module:
        """The model to evaluate and save: the moving average where the recipe has one.

        Where batch norms differ between processes, all get the first one's.
        """
        model = self.model if self.averaged is None else self.averaged.module
        if self.execution.batch_norm == "rank":
            self.ranks.share(model.buffers())
        return model

    def read_loss(self) -> float | None:
        """Mean training loss since the last call; None if it is not finite (JSON has no NaN)."""
        mean = float(self.ranks.gather(self.loss_sum).sum()) / max(1, self.loss_steps)
        self.loss_sum.zero_()
        self.loss_steps = 0
        return mean if math.isfinite(mean) else None

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and counters that :meth:`restore` needs."""
        tensors = {f"model/{k}": v for k, v in self.model.state_dict().items()}
        if self.averaged is not None:
            tensors |= {f"averaged/{k}": v for k, v in self.averaged.state_dict().items()}
        optimizer: dict[str, Any] = {}
        for index, entries in self.optimizer.state_dict()["state"].items():
            for name, value in entries.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer/{index}/{name}"] = value
                else:
                    optimizer[f"{index}/{name}"] = value
        tensors["visits"] = self.visits
        tensors["loss_sum"] = self.ranks.gather(self.loss_sum)
        counters = {"step": self.step, "loss_steps": self.loss_steps, "optimizer": optimizer}
        return tensors, counters

    def restore(self, tensors: Mapping[str, Tensor], counters: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state` returned."""
        self.model.load_state_dict(_below("model/", tensors))
        if self.averaged is not None:
            self.averaged.load_state_dict(_below("averaged/", tensors))
        entries: dict[int, dict[str, Any]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer/"):
                _, index, name = key.split("/")
                entries.setdefault(int(index), {})[name] = value
        for key, value in counters["optimizer"].items():
            index, name = key.split("/")
            entries.setdefault(int(index), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": entries, "param_groups": groups})
        self.visits.copy_(tensors["visits"])
        sums = tensors["loss_sum"]
        if len(sums) == self.ranks.world:
            self.loss_sum.copy_(sums[self.ranks.rank])
        elif self.ranks.first:  # of another number of processes
            self.loss_sum.copy_(sums.sum())
        self.step, self.loss_steps = int(counters["step"]), int(counters["loss_steps"])

    @contextmanager
    def _layers_generator(self, start: int) -> Iterator[None]:
        """Key dropout's draws by (seed, step, first image), then put the global generators back."""
        if not self._stochastic:
            yield
            return
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            # The CPU's generator takes 32 bits of a seed; an odd factor (2**32 over the golden
            # ratio) keeps parts of near steps apart.
            seed = (self._step_seed + self.step + start * 0x9E3779B1) % 2**63
            torch.default_generator.manual_seed(seed)
            if devices:
                torch.cuda.default_generators[self.device.index or 0].manual_seed(seed)
            yield


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}


def _compiled(network: nn.Module, execution: Execution) -> Callable[[Tensor], Tensor]:
    if execution.compile:
        mode = "reduce-overhead" if execution.cuda_graph else "default"
        # A code for each size of batch: which one a step runs does not depend on the steps before
        # it, so a resumed run computes the same bytes.
        return torch.compile(network, dynamic=False, mode=mode)
    if execution.cuda_graph:
        return torch.compile(network, dynamic=False, backend="cudagraphs")
    return network


@contextmanager
def deterministic_mode(enabled: bool) -> Iterator[None]:
    """Torch's deterministic algorithms inside the block; the setting is put back afterwards.

    CUDA's matrix products also want the environment variable ``CUBLAS_WORKSPACE_CONFIG=:4096:8``
    set before the process first uses them; torch raises an error that says so.
    """
    if not enabled:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark
