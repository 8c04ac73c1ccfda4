"""The public data sets: where each is obtained, under which licence, what it holds and how it is laid out."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cfa_cli.data.category import GOOD, Category, TestImage
from cfa_cli.data.layouts import read_folder
from cfa_cli.errors import InputError

_VISA_SPLIT = "split_csv/1cls.csv"
_NON_COMMERCIAL = "CC BY-NC-SA 4.0: for research, not for commercial use"


class NoSplitFileError(Exception):
    """VisA's table of the split is not there; the message is its path."""


@dataclass(frozen=True)
class Download:
    """Where an archive can be had without signing up, and what its bytes are."""

    url: str
    sha256: str
    file: str  # its name


@dataclass(frozen=True)
class Known:
    """What is public about a data set."""

    title: str
    where: str  # it is obtained, by a person
    licence: str
    archive: tuple[str, ...]  # folders that its archives unpack to, or are unpacked to
    names: tuple[str, ...]  # of its categories
    counts: dict[str, tuple[int, int, int]] = field(default_factory=dict)  # images: train, test good, test anomalous
    read_category: Callable[[Path, str], Category | None] = read_folder
    marks: tuple[str, ...] = ()  # patterns of what tells that it is in a folder; (): the categories' folders
    folders: bool = True  # whether the categories can be read as any folder can
    download: Download | None = None  # None: it is not offered, because no digest of it is public

    def is_in(self, place: Path) -> bool:
        """Whether the data set, or some of it, lies in a folder."""
        return any(any(place.glob(mark)) for mark in self.marks or self.names)

    def read(self, place: Path, category: str) -> Category | None:
        """Read one of its categories; None if it is not there."""
        folder = place if self.marks else place / category
        if not folder.is_dir():
            return None
        return self.read_category(folder, category) or Category(category, (), ())


def _read_visa(folder: Path, name: str) -> Category:
    """VisA: the split is a table of paths. What it lists and is not there is left out, so that it is counted."""
    root = folder.parent
    table = root / _VISA_SPLIT
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.DictReader(file) if row["object"] == name]
        listed = [(r["split"], r["label"], root / r["image"], r["mask"] or "") for r in rows]
    except FileNotFoundError as error:
        raise NoSplitFileError(str(table)) from error
    except (OSError, KeyError, UnicodeDecodeError, TypeError) as error:
        raise InputError(
            f"VisA's split file {table} cannot be read.", "Its columns: object,split,label,image,mask."
        ) from error
    there = [row for row in listed if row[2].is_file()]
    test = [
        TestImage(image, GOOD)
        if label == "normal"
        else TestImage(image, label, root / mask if mask and (root / mask).is_file() else None)
        for split, label, image, mask in there
        if split == "test"
    ]
    test.sort(key=lambda image: (image.anomalous, image.path))
    masks = (folder / "Data" / "Masks",)
    return Category(name, tuple(sorted(row[2] for row in there if row[0] == "train")), tuple(test), (), masks)


# Counts: MVTec AD's are the tables of its paper, VisA's its split file 1cls.csv, MPDD's the files of its archive, and
# BTAD's the files of its archive too, whose readme gives 02 and 03 the other way round; KolektorSDD's are of its page
# (347 images without and 52 with a defect) and of the draw that `cfa_cli.data.layouts` makes. Where public sources
# disagree (MVTec LOCO AD, KolektorSDD2), or give no counts a category, none stand here.
_COUNTS: dict[str, dict[str, tuple[int, int, int]]] = {
    "mvtec": {
        "bottle": (209, 20, 63),
        "cable": (224, 58, 92),
        "capsule": (219, 23, 109),
        "carpet": (280, 28, 89),
        "grid": (264, 21, 57),
        "hazelnut": (391, 40, 70),
        "leather": (245, 32, 92),
        "metal_nut": (220, 22, 93),
        "pill": (267, 26, 141),
        "screw": (320, 41, 119),
        "tile": (230, 33, 84),
        "toothbrush": (60, 12, 30),
        "transistor": (213, 60, 40),
        "wood": (247, 19, 60),
        "zipper": (240, 32, 119),
    },
    "visa": {
        "candle": (900, 100, 100),
        "capsules": (542, 60, 100),
        "cashew": (450, 50, 100),
        "chewinggum": (453, 50, 100),
        "fryum": (450, 50, 100),
        "macaroni1": (900, 100, 100),
        "macaroni2": (900, 100, 100),
        "pcb1": (904, 100, 100),
        "pcb2": (901, 100, 100),
        "pcb3": (905, 101, 100),
        "pcb4": (904, 101, 100),
        "pipe_fryum": (450, 50, 100),
    },
    "btad": {"01": (400, 21, 49), "02": (399, 30, 200), "03": (1000, 400, 41)},
    "mpdd": {
        "bracket_black": (289, 32, 47),
        "bracket_brown": (185, 26, 51),
        "bracket_white": (110, 30, 30),
        "connector": (128, 30, 14),
        "metal_plate": (54, 26, 71),
        "tubes": (122, 32, 69),
    },
    "kolektorsdd": {"KolektorSDD": (277, 70, 52)},
}

# Addresses and digests: those of anomalib (openvinotoolkit/anomalib, src/anomalib/data), found again in other public
# repositories that computed them from the archives. The other sets have no digest that is public, so that a copy could
# not be checked.
KNOWN = {
    "mvtec": Known(
        "MVTec AD",
        "https://www.mvtec.com/company/research/datasets/mvtec-ad",
        _NON_COMMERCIAL,
        ("mvtec_anomaly_detection", "MVTecAD", "MVTec"),
        tuple(_COUNTS["mvtec"]),
        _COUNTS["mvtec"],
        download=Download(
            "https://www.mydrive.ch/shares/38536/3830184030e49fe74747669442f0f282/download/420938113-1629952094/mvtec_anomaly_detection.tar.xz",
            "cf4313b13603bec67abb49ca959488f7eedce2a9f7795ec54446c649ac98cd3d",
            "mvtec_anomaly_detection.tar.xz",
        ),
    ),
    "mvtec-ad2": Known(
        "MVTec AD 2",
        "https://www.mvtec.com/company/research/datasets/mvtec-ad-2",
        _NON_COMMERCIAL,
        ("mvtec_ad_2",),
        ("can", "fabric", "fruit_jelly", "rice", "sheet_metal", "vial", "wallplugs", "walnuts"),
    ),
    "mvtec-loco": Known(
        "MVTec LOCO AD",
        "https://www.mvtec.com/company/research/datasets/mvtec-loco",
        _NON_COMMERCIAL,
        ("mvtec_loco_anomaly_detection", "MVTec_LOCO"),
        ("breakfast_box", "juice_bottle", "pushpins", "screw_bag", "splicing_connectors"),
        download=Download(
            "https://www.mydrive.ch/shares/48237/1b9106ccdfbb09a0c414bd49fe44a14a/download/430647091-1646842701/mvtec_loco_anomaly_detection.tar.xz",
            "9e7c84dba550fd2e59d8e9e231c929c45ba737b6b6a6d3814100f54d63aae687",
            "mvtec_loco_anomaly_detection.tar.xz",
        ),
    ),
    "visa": Known(
        "VisA",
        "https://github.com/amazon-science/spot-diff",
        "CC BY 4.0",
        ("VisA", "VisA_20220922"),
        tuple(_COUNTS["visa"]),
        _COUNTS["visa"],
        read_category=_read_visa,
        folders=False,
        download=Download(
            "https://amazon-visual-anomaly.s3.us-west-2.amazonaws.com/VisA_20220922.tar",
            "2eb8690c803ab37de0324772964100169ec8ba1fa3f7e94291c9ca673f40f362",
            "VisA_20220922.tar",
        ),
    ),
    "btad": Known(
        "BTAD",
        "https://avires.dimi.uniud.it/papers/btad/btad.zip",
        "CC BY-SA",
        ("BTech_Dataset_transformed", "BTAD"),
        tuple(_COUNTS["btad"]),
        _COUNTS["btad"],
        download=Download(
            "https://avires.dimi.uniud.it/papers/btad/btad.zip",
            "461c9387e515bfed41ecaae07c50cf6b10def647b36c9e31d239ab2736b10d2a",
            "btad.zip",
        ),
    ),
    "mpdd": Known(
        "MPDD",
        "https://github.com/stepanje/MPDD",
        _NON_COMMERCIAL,
        ("MPDD",),
        tuple(_COUNTS["mpdd"]),
        _COUNTS["mpdd"],
    ),
    "kolektorsdd": Known(
        "KolektorSDD",
        "https://www.vicos.si/resources/kolektorsdd/",
        _NON_COMMERCIAL,
        ("KolektorSDD",),
        tuple(_COUNTS["kolektorsdd"]),
        _COUNTS["kolektorsdd"],
        marks=("kos01",),
        download=Download(
            "https://go.vicos.si/kolektorsdd",
            "65dc621693418585de9c4467d1340ea7958a6181816f0dc2883a1e8b61f9d4dc",
            "KolektorSDD.zip",
        ),
    ),
    "kolektorsdd2": Known(
        "KolektorSDD2",
        "https://www.vicos.si/resources/kolektorsdd2/",
        _NON_COMMERCIAL,
        ("KolektorSDD2", "ksdd2", "KSDD2"),
        ("KolektorSDD2",),
        marks=("train/*_GT.png",),
    ),
    "dagm": Known(
        "DAGM 2007",
        "https://hci.iwr.uni-heidelberg.de/content/weakly-supervised-learning-industrial-optical-inspection",
        "see that page",
        ("DAGM2007", "DAGM_KaggleUpload", "DAGM"),
        ("Class1", "Class2", "Class3", "Class4", "Class5", "Class6", "Class7", "Class8", "Class9", "Class10"),
    ),
}
