"""Time of one micro-batch by kind of operation: forward and backward under torch's profiler.

    python benchmarks/profile_step.py --micro_batch_tokens 2048

The model, adapter and examples are those of `train.py`. An operator called from an autograd function of
`nlicot.model` counts for that function, any other for itself.
"""

from __future__ import annotations

import time
from collections import defaultdict

from train import DROPOUT, RANK, encoded, loaded, make_parser

KINDS = (
    ("attention", ("_Attention", "_PackedAttention")),
    ("LM head and loss", ("_TokenLosses",)),
    ("norm, query, key, value", ("_QueryKeyValue",)),
    ("output projection", ("_Output",)),
    ("norm and MLP", ("_GatedMLP",)),
    ("last norm", ("_RMSNorm",)),
)


def main() -> None:
    """Print the proportion of each kind, and the operators that take most time."""
    import torch
    from torch.profiler import profile

    from nlicot.model.fast import kernels
    from nlicot.model.fast.patch import patch_layers
    from nlicot.model.loaded_model import attach
    from nlicot.settings import LoraSettings
    from nlicot.training.loss import token_losses
    from nlicot.training.windows import MicroBatch, WindowDataset

    options = make_parser("Time of one micro-batch by kind of operation.").parse_args()
    _, train, _ = encoded(options)
    model = attach(loaded(options), LoraSettings(r=RANK, alpha=2 * RANK, dropout=DROPOUT), seed=0)
    kernels.use_compiler(not options.eager)
    patch_layers(model)
    model.train()
    window = WindowDataset(train, token_budget=options.micro_batch_tokens)[
        list(range(options.effective_batch))
    ]

    def learn(batch: MicroBatch) -> None:
        token_losses(model, batch)[0].sum().backward()

    learn(window.micro_batches[0])
    started = time.perf_counter()
    for batch in window.micro_batches:
        learn(batch)
    seconds = time.perf_counter() - started
    num_tokens = int(window.num_by_kind.sum())
    rate = num_tokens / seconds
    print(f"{num_tokens} tokens in {len(window.micro_batches)} micro-batches: {rate:.0f} a second\n")

    with profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        learn(window.micro_batches[0])
    shares: dict[str, float] = defaultdict(float)
    for event in profiler.events():
        shares[_kind(event)] += event.self_cpu_time_total
    total = sum(shares.values())
    for name, spent in sorted(shares.items(), key=lambda item: -item[1]):
        if spent / total >= 0.005:
            print(f"{name:<32}{spent / total:>7.1%}")
    print()
    print(
        profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=15, max_name_column_width=40)
    )


def _kind(event: object) -> str:
    """Return the function that an operator was called from, else its own name."""
    at = event
    while at is not None:
        for kind, names in KINDS:
            if getattr(at, "name", "").startswith(names):
                return kind
        at = getattr(at, "cpu_parent", None)
    return str(getattr(event, "name", ""))


if __name__ == "__main__":
    main()
