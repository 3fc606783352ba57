"""The README's picture: the flow of the data, and the learning curve of one run.

    python benchmarks/overview.py [--run runs/...]

With `--run` the evaluations of that finished run replace those in docs/results/curve.json, from which it draws.
"""

import argparse
import json
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

ROOT = Path(__file__).parent.parent
CURVE, PICTURE = ROOT / "docs" / "results" / "curve.json", ROOT / "docs" / "overview.png"
BOXES = {  # name: (center, color)
    "dataset": ((0.12, 0.82), "#dbe9f6"),
    "environment": ((0.12, 0.18), "#dff0d8"),
    "replay": ((0.42, 0.50), "#eeeeee"),
    "generator": ((0.42, 0.88), "#fde5cc"),
    "sampler": ((0.70, 0.50), "#eeeeee"),
    "learner": ((0.70, 0.18), "#dff0d8"),
}
ARROWS = (  # from, to, label, its position, bend
    ("dataset", "replay", "offline rows", (0.14, 0.62), 0.0),
    ("environment", "replay", "online rows", (0.14, 0.36), 0.0),
    ("replay", "generator", "real rows", (0.30, 0.66), -0.3),
    ("generator", "replay", "generated rows", (0.47, 0.66), -0.3),
    ("replay", "sampler", "", (0.0, 0.0), 0.0),
    ("sampler", "learner", "mixed batches", (0.71, 0.34), 0.0),
    ("learner", "environment", "actions", (0.41, 0.13), 0.0),
)


def collect(run: Path) -> None:
    """Keep the evaluations of `run`, with the settings and the processor that made them."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    names = ("env_steps", "score", "score_se", "unit")
    curve = [{name: line[name] for name in names} for line in lines if line["kind"] == "evaluation"]
    summary = json.loads((run / "summary.json").read_text())
    command = "accelerate launch scripts/finetune.py --generator cfdg --learner famo2o"
    content = {"command": command, "seed": summary["seed"], "processor": summary["processor"], "evaluations": curve}
    CURVE.write_text(json.dumps(content, indent=1) + "\n")


def draw_flow(axes) -> None:
    axes.set(xlim=(0, 0.85), ylim=(0, 1))
    axes.axis("off")
    boxes = {}
    for name, (center, color) in BOXES.items():
        box = {"boxstyle": "round,pad=0.5", "facecolor": color, "edgecolor": "0.5"}
        text = axes.text(*center, name, ha="center", va="center", fontsize=11, bbox=box)
        boxes[name] = text.get_bbox_patch()
    axes.figure.draw_without_rendering()  # gives the boxes their sizes
    for source, target, label, where, bend in ARROWS:
        style = {"arrowstyle": "-|>", "color": "0.35", "shrinkA": 0, "shrinkB": 0, "patchA": boxes[source]}
        style |= {"patchB": boxes[target], "connectionstyle": f"arc3,rad={bend}"}
        axes.annotate("", xy=BOXES[target][0], xytext=BOXES[source][0], arrowprops=style)
        axes.text(*where, label, fontsize=9, color="0.25")


def draw_curve(axes) -> None:
    content = json.loads(CURVE.read_text())
    curve = content["evaluations"]
    steps, scores = ([point[name] for point in curve] for name in ("env_steps", "score"))
    low = [point["score"] - point["score_se"] for point in curve]
    high = [point["score"] + point["score_se"] for point in curve]
    axes.plot(steps, scores, marker="o", markersize=3, color="tab:blue")
    axes.fill_between(steps, low, high, alpha=0.25, color="tab:blue", label="± standard error over episodes")
    axes.axhline(scores[0], color="grey", linestyle="--", linewidth=1, label="after offline pretraining")
    axes.set(
        xlabel="environment steps",
        ylabel="normalized score",
        title=f"HalfCheetah, CFDG + FamO2O, seed {content['seed']}",
    )
    axes.legend(frameon=False, fontsize=9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder of a finished run")
    arguments = parser.parse_args()
    if arguments.run:
        collect(arguments.run)
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    flow, curve = figure.subplots(1, 2, width_ratios=(1.2, 1))
    draw_flow(flow)
    draw_curve(curve)
    figure.savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    main()
