"""A model card: what a run is, was made of and is worth, in Markdown with the metadata the hub expects.

Every figure comes from the run's own files; where one is missing, its line is. Local paths stay out, for
a card is made to be published.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nlicot import __version__
from nlicot.completion import Form
from nlicot.errors import ConfigError
from nlicot.evaluation.metrics import ClassificationMetrics, Metric
from nlicot.prompts import LabelDefinitions, StudentPrompts
from nlicot.records import LABEL_NAMES
from nlicot.report.breakdowns import breakdowns
from nlicot.report.compare import Comparison
from nlicot.report.read_runs import ComparedRun, section
from nlicot.report.sources import Audit, fit_summary, read_json
from nlicot.text_tables import escaped, printable

HUB_NAMES = {"bundled": "HuggingFaceTB/SmolLM2-135M-Instruct"}
"""What the hub calls a base that is named otherwise here."""
LICENSES = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": "apache-2.0",
    "mistralai/Mistral-7B-v0.3": "apache-2.0",
}
"""As the hub's pages of these bases say; an adapter of another base needs `--license`."""
ON_HUB = re.compile(r"[\w.-]+/[\w.-]+")
TAGS = ["natural-language-inference", "chain-of-thought", "lora", "nlicot"]
FIGURES = {
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "macro_f1": "macro F1",
    "auroc": "AUROC",
    "expected_calibration_error": "expected calibration error",
    "brier": "Brier score",
}
HUB_METRICS = ("accuracy", "f1", "precision", "recall")
"""Figures that the hub knows by the same name."""
RECIPE = (
    ("quantisation of the base", "model", "quantization"),
    ("dtype", "model", "dtype"),
    ("LoRA rank", "model", "lora", "r"),
    ("LoRA alpha", "model", "lora", "alpha"),
    ("LoRA dropout", "model", "lora", "dropout"),
    ("LoRA projections", "model", "lora", "target_modules"),
    ("learning rate", "model", "learning_rate"),
    ("weight decay", "model", "weight_decay"),
    ("warm-up share", "model", "warmup_share"),
    ("examples of an optimizer step", "data", "effective_batch"),
    ("longest example, tokens", "data", "max_length"),
    ("epochs at most", "trainer", "max_epochs"),
    ("longest thought when decoding, tokens", "model", "decoding", "max_thought_tokens"),
    ("temperature when decoding", "model", "decoding", "temperature"),
    ("seed", "seed_everything"),
)
FEW_PAIRS = 300
MUCH_TRUNCATED = 0.05
NOT_CALIBRATED = 0.1


class Raw(str):
    """Text that goes into the card as it stands; all other text is escaped."""

    __slots__ = ()


def as_card(
    comparison: Comparison,
    run: ComparedRun,
    audit: Audit | None = None,
    *,
    license_: str | None = None,
    dataset: str | None = None,
) -> str:
    """The card of one run, metadata first.

    Args:
        comparison: of this run alone.
        audit: what an audit of its data found, where there was one.
        license_: the adapter's, by the hub's name for it; without it the base's, where that is known.
        dataset: the hub's name of the data, where they are there.

    Raises:
        ConfigError: the run has no folder, and so no recipe.
        DataError: a file of its folder is broken.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    if run.folder is None or not run.config:
        raise ConfigError(
            f"--card: found no config.yaml that belongs to {run.predictions_path}, "
            "expected a run's folder as `fit` makes it"
        )
    fitted = fit_summary(run)
    base = base_of(run)
    metrics = comparison.runs[0].metrics
    environment = Environment(
        loader=PackageLoader("nlicot.report", "template"),
        undefined=StrictUndefined,
        autoescape=False,  # this is Markdown: `finalize` escapes every text but Raw
        finalize=lambda text: text if isinstance(text, Raw) else escaped(printable(str(text))),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    body = environment.get_template("card.md").render(
        name=run.name,
        base=base if _on_hub(base) else Path(base).name,
        builder=run.builder,
        form=_form(run),
        thinks=any(answer.thought_process for answer in run.answers),
        definitions=_prompts(run).definitions,
        prompt=Raw(_fenced(_prompts(run).render("{premise}", "{hypothesis}", form=_form(run)))),
        fitted=fitted,
        split=comparison.split,
        metrics=metrics,
        label_names=LABEL_NAMES,
        figures=[(title, _shown(name, metrics)) for name, title in FIGURES.items() if _shown(name, metrics)],
        recipe=[
            (title, found) for title, *keys in RECIPE if (found := _setting(run.config, keys)) is not None
        ],
        breakdowns=breakdowns({run.name: run.answers}),
        audit=audit,
        dataset=dataset,
        probes=_probes(run, comparison.split),
        decision=_decision(run),
        limits=_limits(run, metrics),
        version=__version__,
    )
    return (
        f"---\n{_metadata(run, metrics, comparison.split, base, license_, dataset)}\n---\n\n{body.strip()}\n"
    )


def base_of(run: ComparedRun) -> str:
    """The base that the run's adapter is for, by the hub's name where it has one."""
    base = str(fit_summary(run).get("base") or section(run.config, "model").get("base") or "")
    return HUB_NAMES.get(base, base)


def _metadata(
    run: ComparedRun,
    metrics: ClassificationMetrics,
    split: str,
    base: str,
    license_: str | None,
    dataset: str | None,
) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    known = base if _on_hub(base) else None
    card = ModelCardData(
        license=license_ or LICENSES.get(base),
        base_model=known,
        base_model_relation="adapter" if known else None,
        library_name="peft",
        pipeline_tag="text-generation",
        tags=TAGS,
        datasets=[dataset] if dataset else None,
        model_name=printable(run.name),
        eval_results=[
            EvalResult(
                task_type="text-classification",
                task_name="Natural language inference",
                dataset_type=dataset or "own",
                dataset_name=dataset or "the authors' own pairs",
                dataset_split=printable(split),
                metric_type=name,
                metric_name=f"{FIGURES[name]} (95 % interval {_interval(getattr(metrics, name), 4)})",
                metric_value=round(getattr(metrics, name).value, 4),
            )
            for name in HUB_METRICS
        ],
    )
    return str(card.to_yaml()).strip()


def _on_hub(base: str) -> bool:
    return bool(ON_HUB.fullmatch(base)) and not Path(base).expanduser().exists()


def _shown(name: str, metrics: ClassificationMetrics) -> str:
    metric: Metric | None = getattr(metrics, name)
    return "" if metric is None else f"{metric.value:.3f} ({_interval(metric, 3)})"


def _interval(metric: Metric, digits: int) -> str:
    return f"{metric.interval.low:.{digits}f} to {metric.interval.high:.{digits}f}"


def _setting(config: dict[str, Any], keys: Sequence[str]) -> str | None:
    """A value of the configuration, by its path; None where there is none."""
    found: Any = config
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return ", ".join(map(str, found)) if isinstance(found, list) else None if found is None else str(found)


def _form(run: ComparedRun) -> Form:
    if run.builder.replace("_", "").lower() == "labelfirst":
        return Form.LABEL_FIRST
    return Form.THOUGHT_FIRST if any(answer.thought_process for answer in run.answers) else Form.LABEL_ONLY


def _prompts(run: ComparedRun) -> StudentPrompts:
    """The prompts that the run's configuration words."""
    worded = section(section(run.config, "data"), "prompts")
    definitions = section(section(run.config, "data"), "definitions") or section(worded, "definitions")
    templates = {
        name: text for name, text in worded.items() if name != "definitions" and isinstance(text, str)
    }
    return StudentPrompts(**templates, definitions=LabelDefinitions(**definitions))


def _fenced(text: str) -> str:
    """A code block that nothing within can end (CommonMark 0.31, section 4.5)."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def _probes(run: ComparedRun, split: str) -> list[dict[str, Any]]:
    """What `validate --probe-thoughts` found on the split."""
    path = run.folder and run.folder / "metrics.json"
    measured = read_json(path) if path and path.is_file() else {}
    found = section(measured, split).get("faithfulness")
    wanted = {"name", "num", "num_flipped", "num_right"}
    return [probe for probe in found if isinstance(probe, dict) and wanted <= probe.keys()] if found else []


def _decision(run: ComparedRun) -> dict[str, Any]:
    path = run.folder and run.folder / "decision.json"
    return read_json(path) if path and path.is_file() else {}


def _limits(run: ComparedRun, metrics: ClassificationMetrics) -> list[str]:
    """What follows from the figures, in a sentence each."""
    limits = []
    if fit_summary(run).get("on_sample"):
        limits.append(
            "Trained on the small sample that ships with nlicot: it shows that the program works, no more."
        )
    if metrics.support < FEW_PAIRS:
        limits.append(f"Measured on {metrics.support} pairs alone, so the intervals are wide.")
    commoner = max(metrics.num_positive, metrics.support - metrics.num_positive) / metrics.support
    if metrics.accuracy.interval.low <= commoner:
        limits.append(
            f"The accuracy's interval does not lie above {commoner:.1%}, what always giving the commoner "
            "label would reach: it is not shown that the model does better than that."
        )
    truncated = sum(answer.status == "truncated" for answer in run.answers) / metrics.support
    if truncated > MUCH_TRUNCATED:
        limits.append(f"{100 * truncated:.0f} % of the thoughts ran out of their budget before they ended.")
    if metrics.num_unanswered:
        limits.append(f"{metrics.num_unanswered} pairs got no answer; they count as wrong.")
    error = metrics.expected_calibration_error
    if error is not None and error.value > NOT_CALIBRATED:
        points = f"{100 * error.value:.0f} points"
        limits.append(f"Its probabilities are off by {points} on average; they rank pairs at best.")
    return limits
