"""The default architecture at full size, ViT-H/14 with 986 M random parameters: memory, time and parity.

Writes 4 GB below pytest's temporary folder; the parity test needs 9 GB of memory for stock open_clip.
Run: pytest -m slow tests/models/test_encoder_full_size.py -s
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.fakes.pictures import draw_picture

pytestmark = pytest.mark.slow

TEXT_PARAMETERS = 354_032_640
MIB = 1 << 20

MEASURE = """
import sys, time
from pathlib import Path
begun = time.perf_counter()
import numpy as np
import open_clip
from imret.models.encoder import Encoder
def peak_mib():
    # Not ru_maxrss: a child inherits that of the process that started it.
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024
imported, before = time.perf_counter() - begun, peak_mib()
encoder = Encoder(sys.argv[1], precision=sys.argv[2], device="cpu")
begun = time.perf_counter()
texts = encoder.encode_texts(["a mushroom"])
cold = time.perf_counter() - begun
begun = time.perf_counter()
encoder.encode_texts(["a photo of a red mushroom"])
warm = time.perf_counter() - begun
print(f"{before} {peak_mib()} {imported} {cold} {warm} {texts.shape}", file=sys.stderr)
np.save(sys.argv[3], texts)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
@pytest.mark.parametrize(("precision", "bytes_each"), [("bf16", 2), ("fp32", 4)])
def test_a_text_query_holds_the_text_tower_and_no_more(
    full_size: Path, tmp_path: Path, precision: str, bytes_each: int
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(full_size), precision, str(tmp_path / "texts.npy")],
        capture_output=True,
        text=True,
        check=True,
    )
    before, peak, imported, cold, warm = (float(word) for word in done.stderr.split()[-7:-2])
    tower = TEXT_PARAMETERS * bytes_each / MIB
    print(
        f"\n{precision}: interpreter {before:.0f} MiB (imports {imported:.1f} s), "
        f"peak {peak:.0f} MiB = + {peak - before:.0f} for a tower of {tower:.0f}; "
        f"first text {cold:.2f} s, second {warm:.2f} s"
    )
    assert peak - before < tower * 1.05 + 32
    assert np.load(tmp_path / "texts.npy").shape == (1, 1024)


PARITY = """
import sys, warnings
import numpy as np
import torch
from PIL import Image
texts = ["a mushroom", "a red bird on the branch of a tree in spring", "x"]
pictures = [
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))
    for seed, shape in enumerate([(300, 400, 3), (224, 224, 3), (500, 250, 3)])
]
if sys.argv[3] == "stock":
    import open_clip
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{sys.argv[1]}")
    tokenize = open_clip.get_tokenizer("ViT-H-14")
    with torch.inference_mode():
        rows = [
            model.eval().encode_text(tokenize(texts), normalize=True).numpy(),
            model.encode_image(torch.stack([transform(p) for p in pictures]), normalize=True).numpy(),
        ]
else:
    from imret.models.encoder import Encoder
    encoder = Encoder(sys.argv[1], precision=sys.argv[3], device="cpu")
    rows = [encoder.encode_texts(texts), encoder.encode_images(pictures)]
np.save(sys.argv[2], np.stack(rows))
"""


def test_full_size_embeddings_are_those_of_stock_open_clip(full_size: Path, tmp_path: Path) -> None:
    made = {}
    for kind in ("stock", "fp32", "bf16"):
        out = tmp_path / f"{kind}.npy"
        subprocess.run([sys.executable, "-c", PARITY, str(full_size), str(out), kind], check=True)
        made[kind] = np.load(out)  # (2, 3, 1024): texts, pictures
    assert abs(made["fp32"] - made["stock"]).max() < 1e-4
    cosines = (made["bf16"] * made["stock"]).sum(axis=-1)
    print(f"\nfp32 differs by {abs(made['fp32'] - made['stock']).max():.1e}; bf16 cosines {cosines.round(5)}")
    assert cosines.min() > 0.99


SEARCH_AND_PEAK = """
import sys
from pathlib import Path
sys.argv = ["imret", *sys.argv[1:]]
from imret.cli.main import main
try:
    main()
finally:
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    print("PEAK", int(status["VmHWM"].split()[0]) // 1024, file=sys.stderr)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_the_commands_ingest_and_search_with_it_and_a_search_holds_the_text_tower_only(
    full_size: Path, tmp_path: Path
) -> None:
    for seed in range(4):
        draw_picture(
            tmp_path / "photos" / ("fungi", "aves")[seed % 2] / f"{seed}.jpg", seed=seed, size=(300, 240)
        )

    def imret(*arguments: str) -> tuple[str, int]:
        done = subprocess.run(
            [sys.executable, "-c", SEARCH_AND_PEAK, *arguments], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout, int(done.stderr.split("PEAK")[1])

    db = str(tmp_path / "db")
    _, peak = imret("ingest", str(tmp_path / "photos"), "--model", str(full_size), "--db", db)
    found, search_peak = imret("search", "mushroom", "--category", "fungi", "--format", "json", "--db", db)
    print(f"\nimret ingest peaked at {peak} MiB, imret search at {search_peak} MiB")
    assert [json.loads(line)["category"] for line in found.splitlines()] == ["fungi", "fungi"]
    # The interpreter with torch and open_clip takes up to 900 MiB; fp32 is where there is no bf16.
    assert search_peak < 900 + TEXT_PARAMETERS * 4 / MIB
