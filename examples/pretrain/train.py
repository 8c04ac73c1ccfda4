"""Train a resnet18 (conv1 to layer3) on drawn images, and export it in half precision.

    python train.py --out runs/first --export backbone.safetensors

Stopped at any time, the same command goes on from the last checkpoint, on the same path. On CPUs, one process
a core:

    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 train.py ...
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
from pathlib import Path

import timm
import torch
import torch.distributed as dist
import torch.nn.functional as F
from batches import CELL, GROUP, Batch, Batches, light_up
from defects import KINDS
from muon import Muon
from pool import open_pool
from safetensors.torch import load_file, save_file
from teachers import Teacher, distances_loss, maps_loss
from torch import Tensor, nn
from torch.utils.data import DataLoader

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LAYER1_GAIN = 0.3
WIDTHS = {"layer1": 64, "layer2": 128, "layer3": 256}


class Trunk(nn.Module):
    """resnet18 up to layer3, under timm's names."""

    def __init__(self) -> None:
        super().__init__()
        whole = timm.create_model("resnet18", pretrained=False, zero_init_last=False)
        for name in ("conv1", "bn1", "act1", "maxpool", *WIDTHS):
            setattr(self, name, getattr(whole, name))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps of strides 4, 8 and 16."""
        x = self.maxpool(self.act1(self.bn1(self.conv1(x))))
        maps = []
        for name in WIDTHS:
            x = getattr(self, name)(x)
            maps.append(x)
        return maps


class Student(nn.Module):
    """The trunk and its linear heads, on every level: which class is this, what is broken, what do the teachers see?

    The heads are linear and see the 3x3 average, since that is how the detector reads the features.
    """

    def __init__(self, classes: int, taught: list[list[int]]) -> None:
        """`taught`: the channels of each teacher's maps, by teacher and level."""
        super().__init__()
        self.trunk = Trunk()
        self.classify = nn.ModuleList(nn.Conv2d(width, classes, 1) for width in WIDTHS.values())
        self.detect = nn.ModuleList(nn.Conv2d(width, len(KINDS) + 1, 1) for width in WIDTHS.values())
        self.guess = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(width, channels, 1) for width, channels in zip(WIDTHS.values(), maps, strict=True))
            for maps in taught
        )
        self.sharpness, self.offset = nn.Parameter(torch.tensor(3.0)), nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor], list[list[Tensor]], Tensor]:
        """Return class logits on the cells, defect logits and guesses of the teachers' maps at each stride, features.

        The features (B, C, S/8, S/8) are all levels as the detector compares them.
        """
        side = x.shape[-1] // CELL
        maps = [F.avg_pool2d(m, 3, 1, 1) for m in self.trunk(x)]
        cells = [F.adaptive_avg_pool2d(m, side) for m in maps]
        classes = [head(m).float() for head, m in zip(self.classify, cells, strict=True)]
        defects = [head(m).float() for head, m in zip(self.detect, maps, strict=True)]
        guesses = [[head(m) for head, m in zip(heads, maps, strict=True)] for heads in self.guess]
        middle = maps[1].shape[-2:]
        features = torch.cat(
            [
                LAYER1_GAIN * F.avg_pool2d(maps[0], 2),
                maps[1],
                F.interpolate(maps[2], middle, mode="bilinear", align_corners=False),
            ],
            1,
        )
        return classes, defects, guesses, features.float()

    def match_loss(self, features: Tensor, where: Tensor) -> Tensor:
        """Do what the detector will do: tell a place from its distance to the nearest good one in the group's others.

        features (B, C, s, s), where (B, S, S) 0 = good; GROUP images in a row are a group. Distances are taken relative
        to the group's good ones, on a logarithmic scale, so that no group's and no level's scale matters.
        """
        batch, channels, side, _ = features.shape
        cell = where.shape[-1] // side
        found = (where[:, None] > 0).float()
        share, touched = F.avg_pool2d(found, cell), F.max_pool2d(F.max_pool2d(found, cell), 3, 1, 1)
        bad, good = (share > 0.1).view(-1, GROUP * side * side), (touched == 0).view(-1, GROUP * side * side)
        x = features.flatten(2).transpose(1, 2).reshape(batch // GROUP, GROUP * side * side, channels)
        with torch.no_grad():
            distances = x.square().sum(2)[:, None] - 2 * (x.bfloat16() @ x.bfloat16().mT).float()
            image = torch.arange(GROUP, device=x.device).repeat_interleave(side * side)
            distances.masked_fill_((image[:, None] == image) | ~good[:, None], math.inf)
            nearest = distances.argmin(2)
        squared = (x - torch.gather(x, 1, nearest[..., None].expand_as(x))).square().sum(2)
        logs = 0.5 * torch.log(squared + 1e-4)
        usual = (logs * good).sum(1, keepdim=True) / good.sum(1, keepdim=True).clamp_min(1)
        logits = self.sharpness * (logs - usual) - self.offset
        missed, alarms = F.softplus(-logits)[bad], F.softplus(logits)[good]
        return missed.sum() / max(1, len(missed)) + alarms.sum() / max(1, len(alarms))


def class_loss(logits: list[Tensor], target: Tensor) -> Tensor:
    """Cross entropy over procedural classes, averaged over levels and cells."""
    return torch.stack([F.cross_entropy(level, target, label_smoothing=0.1) for level in logits]).mean()


def defect_loss(logits: list[Tensor], where: Tensor) -> Tensor:
    """Cross entropy over kinds at strides 4 (all levels added up, as the detector does), 8 and 16."""
    joint = logits[0] + sum(F.interpolate(m, logits[0].shape[-2:], mode="bilinear") for m in logits[1:])
    # Most cells are good: without a weight the first thousands of steps learn nothing else.
    weight = torch.full((len(KINDS) + 1,), 4.0, device=where.device)
    weight[0] = 1.0
    total = torch.zeros((), device=where.device)
    for level, share in ((joint, 1.0), (logits[1], 0.25), (logits[2], 0.25)):
        cell = where.shape[-1] // level.shape[-1]
        target = F.max_pool2d(where[:, None].float(), cell)[:, 0].long()
        total = total + share * F.cross_entropy(level, target, weight)
    return total


def learning_rate(step: int, steps: int, decay: int) -> float:
    """Share of the peak: a short warm-up, a plateau, and straight down to zero over the last `decay` steps.

    Until the decay begins the path does not depend on `steps`: a run may be made longer or shorter while it goes.
    """
    return min(1.0, (step + 1) / 100, (steps - step) / decay)


@torch.no_grad()
def quieten_layer1(trunk: nn.Module, gain: float) -> None:
    """Scale layer1's maps by `gain` and change nothing in layer2 and layer3: ReLU and max pooling commute with it.

    The detector compares features by Euclidean distance, where the level that varies most is heard most. That is
    layer1, which sees brightness and grain rather than structure.
    """
    blocks = list(trunk.layer1)
    for norm in (trunk.bn1, *(block.bn2 for block in blocks)):
        norm.weight.mul_(gain)
        norm.bias.mul_(gain)
    after = trunk.layer2[0]
    for conv in (*(block.conv1 for block in blocks), after.conv1, after.downsample[0]):
        conv.weight.div_(gain)


def export(trunk: nn.Module, path: Path, facts: dict[str, str], earlier: dict[str, Tensor], keep: float) -> None:
    """Write the trunk in half precision under timm's names, layer1 quietened, with `facts` in the header.

    `keep` is the share of the `earlier` exported weights in the average that is written.
    """
    trunk = copy.deepcopy(trunk)
    quieten_layer1(trunk, LAYER1_GAIN)
    tensors = {
        name: (tensor.cpu() if not keep else tensor.cpu().lerp(earlier[name].float(), keep)).half().contiguous()
        for name, tensor in trunk.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata={"licence": "Apache-2.0", "architecture": "resnet18", **facts})


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint and the log")
    parser.add_argument("--export", type=Path, help="where to write the averaged trunk (.safetensors)")
    parser.add_argument("--pool", type=Path, default=Path("pool.npy"), help="drawn images; drawn first if missing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--classes", type=int, default=1000, help="procedural classes in the pool")
    parser.add_argument("--instances", type=int, default=20, help="images a class in the pool")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--decay", type=int, default=800, help="how many of the last steps bring the rate to zero")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--crops", type=int, nargs="+", default=[64, 96, 128], help="multiples of 16; one a batch")
    parser.add_argument("--class-weight", type=float, default=1.0, help="of the loss over classes; 0: without")
    parser.add_argument("--defect-weight", type=float, default=3.0, help="of the loss over defects; 0: without")
    parser.add_argument("--match-weight", type=float, default=2.0, help="of the loss over distances; 0: without")
    parser.add_argument("--teacher", action="append", default=[], help="NAME=FILE: a timm network and its weights")
    parser.add_argument("--maps-weight", type=float, default=4.0, help="of the loss over the teachers' maps")
    parser.add_argument("--distances-weight", type=float, default=10.0, help="of the loss over the teachers' distances")
    parser.add_argument("--init", type=Path, help="start from an exported trunk (.safetensors), with new heads")
    parser.add_argument("--keep", type=float, default=0.5, help="share of --init's weights in what is exported")
    parser.add_argument("--lr", type=float, default=0.04, help="peak rate, relative to the weights' norm")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=1, help="processes that make batches")
    return parser.parse_args()


def main() -> None:
    """Draw, train, export."""
    args = parse()
    device = torch.device(args.device)
    # Processes meet twice a step. Threads meet several times a layer and spin while they wait: on a machine that also
    # does other work, two of them took two to three times the CPU time for the same step.
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if args.batch % (GROUP * world):
        raise SystemExit(f"--batch must be a multiple of {GROUP * world}")
    torch.manual_seed(args.seed)
    pool = open_pool(args.pool, args.seed, args.classes, args.instances, 160, os.cpu_count() or 1)
    teachers = nn.ModuleList()
    for teacher in args.teacher:
        name, _, file = teacher.partition("=")
        teachers.append(Teacher(name, Path(file)).to(device, memory_format=torch.channels_last))
    model = Student(args.classes, [teacher.widths for teacher in teachers]).to(
        device, memory_format=torch.channels_last
    )
    earlier = load_file(args.init) if args.init else {}
    if earlier:
        model.trunk.load_state_dict(earlier, strict=False)  # all but the batch counters
        quieten_layer1(model.trunk, 1 / LAYER1_GAIN)
    average = copy.deepcopy(model.trunk).requires_grad_(False)
    optimizer = Muon(model, args.lr)
    mean = torch.tensor(IMAGENET_MEAN, device=device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=device).view(1, 3, 1, 1)
    weights = (args.class_weight, args.defect_weight, args.match_weight, args.maps_weight, args.distances_weight)
    shares = torch.tensor(weights, device=device)

    first = 0
    checkpoint = args.out / "checkpoint.pt"
    args.out.mkdir(parents=True, exist_ok=True)
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        teachers.load_state_dict(state["teachers"])
        first = state["step"]

    batches = Batches(pool, args.seed, args.batch // world, args.crops, rank)
    loader = DataLoader(batches, None, sampler=range(first, args.steps), num_workers=args.workers, prefetch_factor=4)
    log = (args.out / "log.jsonl").open("a")
    started, seen = time.perf_counter(), 0
    running = torch.zeros(len(weights), device=device)
    batch: Batch
    for step, batch in enumerate(loader, first):
        images, classes, where = (part.to(device, non_blocking=True) for part in batch)
        lit = light_up(images, (args.seed * 1_000_000 + step) * world + rank)
        x = ((lit - mean) / std).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            class_logits, defect_logits, guesses, features = model(x)
            taught = [teacher(lit) for teacher in teachers]
        parts = [
            class_loss(class_logits, classes),
            defect_loss(defect_logits, where),
            model.match_loss(features, where),
        ]
        nothing = features.new_zeros(())
        parts.append(maps_loss(guesses, taught) if taught else nothing)
        parts.append(distances_loss(features, taught, GROUP) if taught else nothing)
        losses = torch.stack(parts)
        loss = losses @ shares
        loss.backward()
        # New heads first learn to read a trunk that was trained before.
        settled = min(1.0, step / 300) ** 2 if args.init else 1.0
        optimizer.step(learning_rate(step, args.steps, args.decay), settled)

        blend = min(0.998, (step + 1) / (step + 10))
        with torch.no_grad():
            pairs = zip(average.state_dict().values(), model.trunk.state_dict().values(), strict=True)
            kept, new = zip(*((a, b) for a, b in pairs if a.is_floating_point()), strict=True)
            torch._foreach_lerp_(list(kept), list(new), 1 - blend)

        seen += args.batch
        running += losses.detach()
        done = step + 1
        if rank:
            continue
        if done % 50 == 0:
            rate = seen / (time.perf_counter() - started)
            left = (args.steps - done) * args.batch / rate / 60
            means = dict(zip(("class", "defect", "match", "maps", "distances"), (running / 50).tolist(), strict=True))
            running.zero_()
            told = "  ".join(f"{name} {value:.4f}" for name, value in means.items())
            print(f"step {done}/{args.steps}  {told}  {rate:.0f} images/s  {left:.1f} min left", flush=True)
            log.write(json.dumps({"step": done, **means, "rate": rate}) + "\n")
            log.flush()
        if done % 200 == 0 or done == args.steps:
            state = {"model": model.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
            state["teachers"] = teachers.state_dict()
            torch.save({**state, "step": done}, checkpoint.with_suffix(".partial"))
            checkpoint.with_suffix(".partial").replace(checkpoint)
            facts = {"seed": str(args.seed), "steps": str(done)}
            if args.export:
                export(average, args.export, facts, earlier, args.keep if earlier else 0.0)


if __name__ == "__main__":
    main()
