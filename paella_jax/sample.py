"""Draw images: `python -m paella_jax.sample --checkpoint RUN --prompt "..." --out grid.png`."""

from __future__ import annotations

import argparse
from pathlib import Path

from paella_jax.launch import run, setup_jax


def main() -> int:
    """Parses the command line, samples, and writes one grid (or one file per image)."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--checkpoint", required=True, help="run folder of configs/paella.py")
    parser.add_argument("--prompt", action="append", default=[], help="may be given several times")
    parser.add_argument("--prompts", help="text file with one prompt per line")
    parser.add_argument("--negative_prompt", default="")
    parser.add_argument("--out", default="grid.png", help="PNG grid, or a folder for single images")
    parser.add_argument("--num_images_per_prompt", type=int, default=1)
    parser.add_argument("--height", type=int)
    parser.add_argument("--width", type=int)
    parser.add_argument("--num_steps", type=int)
    parser.add_argument("--guidance_scale", type=float)
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    prompts = list(arguments.prompt)
    if arguments.prompts:
        lines = Path(arguments.prompts).read_text(encoding="utf-8").splitlines()
        prompts += [line for line in lines if line.strip()]
    out = Path(arguments.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    setup_jax()

    from PIL import Image

    from paella_jax.evaluation.pictures import save_grid, to_uint8
    from paella_jax.pipeline import load

    pipeline = load(arguments.checkpoint)
    names = ("negative_prompt", "num_images_per_prompt", "height", "width", "num_steps",
             "guidance_scale", "temperature", "seed")  # fmt: skip
    images = pipeline.generate(prompts, **{n: getattr(arguments, n) for n in names}).images
    titles = [p for p in prompts for _ in range(arguments.num_images_per_prompt)]
    if out.suffix.lower() == ".png":
        save_grid(out, images, titles)
        print(f"wrote {out} ({len(images)} images)")
        return 0
    out.mkdir(exist_ok=True)
    for index, image in enumerate(to_uint8(images)):
        Image.fromarray(image).save(out / f"{index:05d}.png")
    (out / "prompts.txt").write_text("\n".join(titles) + "\n", encoding="utf-8")
    print(f"wrote {len(images)} images to {out}")
    return 0


if __name__ == "__main__":
    run(main)
