"""Write a model card: what a run is, how it was made and how good it is, with metadata for the hub.

Every figure comes from the run's own files; a line whose figure is missing is left out. Local paths are left
out too, since a card is made to be published.
"""

from __future__ import annotations

import logging
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nlicot import __version__
from nlicot.audit.findings import Audit
from nlicot.completion import Form
from nlicot.config_files import section
from nlicot.errors import ConfigError
from nlicot.evaluation.metrics import PERCENTAGES, SCORES, metrics_to_dict
from nlicot.model.base_model import BUNDLED, BUNDLED_HUB_NAME
from nlicot.prompts import LabelDefinitions, StudentPrompts
from nlicot.records import LABEL_NAMES
from nlicot.report.compare import breakdowns
from nlicot.report.read_runs import Run, interpreting
from nlicot.report.tables import rendered, with_interval
from nlicot.run.folder import NUM_STEPS, TUNED_WITH, is_of_other_weights
from nlicot.text_tables import escaped, printable

logger = logging.getLogger(__name__)

LICENSES = {BUNDLED_HUB_NAME: "apache-2.0", "mistralai/Mistral-7B-v0.3": "apache-2.0"}
"""From the hub's pages of these bases; an adapter of another base needs `--license`."""
TAGS = ["natural-language-inference", "chain-of-thought", "lora", "nlicot"]
HUB_METRICS = ("accuracy", "f1", "precision", "recall")  # the hub knows them by these names
PROBE = {"name", "num", "num_flipped", "num_right"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """How a run's model is handed on: by default as the adapter in the run's folder.

    Args:
        what: the start of the sentence that ends with "<base> that does natural-language inference".
        usage: Markdown that says how to load it.
        library: the library that loads it, by its name on the hub.
        relation: its relation to the base, by its name on the hub.
    """

    what: str = "A LoRA adapter for"
    usage: str = "Load it with `peft` on the base."
    library: str = "peft"
    relation: str = "adapter"


def as_card(
    run: Run,
    audit: Audit | None,
    *,
    license_: str | None = None,
    dataset: str | None = None,
    package: Package = Package(),
    form: Form | None = None,
    prompts: StudentPrompts | None = None,
) -> str:
    """Render the card of one run, without results if it has no predictions.

    Args:
        run: the run.
        audit: the audit of its data.
        license_: its name on the hub; default: that of the base.
        dataset: the name of the data on the hub.
        package: how the model is handed on.
        form: the form of completion that it is asked for; default: that of the run's predictions.
        prompts: those of its checkpoint; default: those of its configuration, in this version's words.
    """
    if run.folder is None or not run.config:
        raise ConfigError(
            f"--card: found no config.yaml that belongs to {run.predictions_path}, "
            "expected a run's folder as `fit` makes it"
        )
    folder = run.folder
    if run.answers and is_of_other_weights(folder, run.made_with):
        logger.warning(
            "%s: its weights changed since they predicted %s; no results in the card before `validate`",
            folder,
            run.split,
        )
        run = replace(run, answers=())
    base = base_of(run)
    metrics = run.metrics if run.answers else None
    form = form or _form_of(run)
    thinks = form.thinks_before_label or any(answer.thought_process for answer in run.answers)
    with interpreting(folder / "config.yaml"):
        prompts = prompts or _prompts(run)
        prompt = _fenced(prompts.render("{premise}", "{hypothesis}", form=form))
    body = rendered(
        "card.md",
        finalize=lambda text: text if text in (prompt, package.usage) else escaped(str(text)),
        run=run,
        base=base if _on_hub(base) else Path(base).name,
        thinks=thinks,
        definitions=prompts.definitions,
        prompt=prompt,
        package=package,
        setting=lambda key: _setting(run.config, key),
        **_recorded(run, folder),
        metrics=metrics,
        truncated=metrics and sum(each.status == "truncated" for each in run.answers) / metrics.support,
        label_names=LABEL_NAMES,
        with_interval=with_interval,
        titles=PERCENTAGES | SCORES,
        breakdowns=breakdowns({run.name: run.answers}) if metrics else (),
        audit=audit,
        dataset=dataset,
        version=__version__,
    )
    metadata = _metadata(run, base, license_, dataset, package)
    return f"---\n{metadata}\n---\n\n{body.strip()}\n"


def _form_of(run: Run) -> Form:
    """Return the form that the builder is named after, else the one that the predictions have."""
    name = run.builder.replace("_", "").lower()
    for form in Form:
        if name == form.value.replace("_", ""):
            return form
    thinks = any(answer.thought_process for answer in run.answers)
    return Form.THOUGHT_FIRST if thinks else Form.LABEL_ONLY


def _recorded(run: Run, folder: Path) -> dict[str, Any]:
    """Return the facts that `fit` and `validate` recorded in the run's JSON files."""
    training = []
    with interpreting(folder / "fit.json"):
        fitted = run.read_json("fit.json")
        if NUM_STEPS in fitted:
            training.append(("optimizer steps", fitted[NUM_STEPS]))
        if "best_step" in fitted and fitted.get("best") is not None:
            best = f"{fitted.get('monitor') or 'best'} {fitted['best']:.3f}"
            training.append(("checkpoint", f"step {fitted['best_step']}, {best}"))
        built = dict(fitted.get("built") or {})
    with interpreting(folder / "metrics.json"):
        probes = section(run.read_json("metrics.json"), run.split).get("faithfulness") or []
        probes = [probe for probe in probes if probe.keys() >= PROBE]
    with interpreting(folder / "decision.json"):
        decision = run.read_json("decision.json")
        is_stale = is_of_other_weights(folder, section(decision, TUNED_WITH))
        if decision.keys() >= {"threshold", "accuracy_cross_fitted"} and not is_stale:
            rounded = {key: f"{decision[key]:.3f}" for key in ("threshold", "accuracy_cross_fitted")}
            decision = {key: decision[key] for key in ("num_pairs", "split")} | rounded
        else:
            decision = {}
    found = {"training": training, "built": built, "on_sample": fitted.get("on_sample")}
    return {**found, "probes": probes, "decision": decision}


def base_of(run: Run) -> str:
    """Return the base of the run's adapter, by its name on the hub if it has one."""
    base = str(run.read_json("fit.json").get("base") or section(run.config, "model").get("base") or "")
    return BUNDLED_HUB_NAME if base == BUNDLED else base


def _metadata(run: Run, base: str, license_: str | None, dataset: str | None, package: Package) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    known = base if _on_hub(base) else None
    metrics = metrics_to_dict(run.metrics) if run.answers else {}
    results = [
        EvalResult(
            task_type="text-classification",
            task_name="Natural language inference",
            dataset_type=dataset or "own",
            dataset_name=dataset or "the authors' own pairs",
            dataset_split=printable(run.split),
            metric_type=name,
            metric_name=f"{PERCENTAGES[name]} (95 % interval {metric['low']:.4f} to {metric['high']:.4f})",
            metric_value=round(metric["value"], 4),
        )
        for name, metric in ((name, metrics[name]) for name in HUB_METRICS if metrics)
    ]
    data = ModelCardData(
        license=license_ or LICENSES.get(base),
        base_model=known,
        base_model_relation=package.relation if known else None,
        library_name=package.library,
        pipeline_tag="text-generation",
        tags=TAGS,
        datasets=[dataset] if dataset else None,
        model_name=printable(run.name),
        eval_results=results or None,
    )
    return str(data.to_yaml()).strip()


def _on_hub(base: str) -> bool:
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", base)) and not Path(base).expanduser().exists()


def _setting(config: dict[str, Any], key: str) -> str | None:
    found: Any = config
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    if isinstance(found, list):
        return ", ".join(map(str, found))
    return None if found is None else str(found)


def _prompts(run: Run) -> StudentPrompts:
    prompts = section(section(run.config, "data"), "prompts")
    definitions = section(run.config, "definitions")
    if definitions in ({}, asdict(LabelDefinitions())):
        definitions = section(prompts, "definitions") or definitions
    templates = {
        name: text for name, text in prompts.items() if name != "definitions" and isinstance(text, str)
    }
    return StudentPrompts(**templates, definitions=LabelDefinitions(**definitions))


def _fenced(text: str) -> str:
    """A code block whose fence is longer than any in the text (CommonMark 0.31, section 4.5)."""
    fence = "`" * max([3, *(len(ticks) + 1 for ticks in re.findall("`+", text))])
    return f"{fence}text\n{text}\n{fence}"
