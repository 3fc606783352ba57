"""Minari in, Minari out: copy a dataset, with generated transitions appended, to a new Minari dataset.

    python examples/minari_augment.py D4RL/pointmaze/umaze-v2 my/umaze-augmented-v0

About a minute for the small generator below. The result is in Minari's store (`MINARI_DATASETS_PATH`).
"""

import sys

import minari

from o2o_diffusion.integrations.minari import augment


def main(dataset: str, output_id: str) -> None:
    """Train a small generator on `dataset`, append 2,000 rows, and read the result back."""
    folder = augment(dataset, output_id, generator="cfdg", num_samples=2_000, settings=["updates=1500", "width=128"])
    augmented = minari.load_dataset(output_id)
    real, total = augmented.storage.metadata["generated_episodes"]
    print(f"{folder}: {real} real episodes, then {total - real} generated ones of one step each")
    print(augmented[total - 1])


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: {sys.argv[0]} <Minari id or folder> <id of the new dataset>")
    main(*sys.argv[1:])
