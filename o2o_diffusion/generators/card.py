"""The model card of a saved generator in the hub's format: description, training data, quality, intended use.

Follows Mitchell et al. (2019), Model cards for model reporting, https://arxiv.org/abs/1810.03993.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

LIBRARY = "o2o_diffusion"
BODY = """
# {name}, a generator of transitions

A diffusion model of transitions (s, a, r, s', termination) for offline-to-online reinforcement learning, of the class
`{target}`. It is refreshed on the experience of a policy, and its rows are mixed into the learner's batches.

```python
from o2o_diffusion import Augmenter

augmenter = Augmenter.from_pretrained("<this folder, or its id on the hub>")
batch = augmenter.sample(256)  # observations, actions, rewards, next_observations, terminations
```

## Training data

{data}

## Columns

In this order; actions are in [-1, 1], rewards raw, terminations 1 only where the task ended.

{columns}

## Quality

{quality}

## Intended use and limits

Meant for training policies in the environment of its data, together with real rows. Its rows are single transitions
near the data it was trained on: they cover no states that were never visited, are not consistent over several steps,
and must not be taken for measurements of the environment. Check their quality before relying on them.

## Settings

{settings}

## License

{license}
"""


def model_card(
    settings: Mapping[str, Any],
    provenance: Mapping[str, Any],
    columns: Sequence[Sequence[Any]],
    pool_rows: Sequence[int],
) -> "ModelCard":
    """Build the card of a generator with these `settings` and `provenance`.

    `columns` are names and widths, `pool_rows` the offline and online rows of its last fit. The license is the user's
    choice, `provenance["license"]`, and left open if missing.
    """
    from huggingface_hub import ModelCard, ModelCardData

    license = provenance.get("license")
    tags = ["reinforcement-learning", "offline-to-online-rl", "diffusion", "data-augmentation"]
    data = ModelCardData(library_name=LIBRARY, license=license, tags=tags, pipeline_tag="reinforcement-learning")
    sections = {
        "name": str(settings["target"]).rpartition(".")[2],
        "target": settings["target"],
        "data": _table(_data(provenance, pool_rows)),
        "columns": _table({f"`{name}`": width for name, width in columns}),
        "quality": _quality(provenance.get("quality")),
        "settings": _table({f"`{name}`": f"`{value}`" for name, value in settings.items() if name != "target"}),
        "license": license or "Left open by whoever made this generator.",
    }
    return ModelCard(f"---\n{data.to_yaml()}\n---\n{BODY.format(**sections)}")


def _data(provenance: Mapping[str, Any], pool_rows: Sequence[int]) -> dict[str, Any]:
    environment = provenance.get("environment") or {}
    return {
        "dataset (offline label)": provenance.get("dataset", "unknown"),
        "its sha256": provenance.get("dataset_sha256", "unknown"),
        "dataset (online label)": provenance.get("online_dataset") or "none",
        "environment": environment.get("id", "unknown"),
        "offline rows": f"{pool_rows[0]:,}",
        "online rows": f"{pool_rows[1]:,}",
        "updates": f"{provenance['updates']:,}" if "updates" in provenance else "unknown",
    }


def _quality(quality: Mapping[str, Any] | None) -> str:
    if not quality or "verdict" not in quality:
        return "Not measured when it was saved."
    numbers = {name.replace("_", " "): f"{value:.3f}" for name, value in quality["numbers"].items()}
    return (
        f"{quality['rows']:,} new rows of each label, judged by real rows that it was not trained on, would be "
        f"{quality['verdict']}\n\nAll numbers, by label:\n\n{_table(numbers)}"
    )


def _table(rows: Mapping[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])
