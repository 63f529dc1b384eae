"""Facts of the complete data sets, counted in the label maps, to compare a copy with.

Sizes of the scenarios: the lists that MiB (fcdl94/MiB), SDR (LTTM/SDR) and EWF ship, and the rules of ``view.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Reference:
    """``images``: how many, by split. ``class_images``: images that hold label 1, 2, ..., by split, where published.

    ``ids_sha256``: of the ascending ids, each followed by a line feed. ``with_void``: training maps with void pixels,
    if it is informative.
    ``scenarios``: ``"TASK/SETUP"`` -> training images by step.
    """

    images: dict[str, int]
    class_images: dict[str, tuple[int, ...]] = field(default_factory=dict)
    scenarios: dict[str, tuple[int, ...]] = field(default_factory=dict)
    ids_sha256: dict[str, str] = field(default_factory=dict)
    with_void: int | None = None


# fmt: off
VOC = Reference(
    images={"train": 10582, "val": 1449},
    class_images={
        "train": (
            586, 486, 698, 461, 654, 385, 1086, 1000, 1081, 264, 528, 1177, 444, 482, 3898, 487, 299, 491, 500, 548,
        ),
        "val": (
            90, 79, 103, 72, 96, 74, 127, 119, 123, 71, 75, 128, 79, 76, 446, 85, 57, 90, 84, 74,
        ),
    },
    scenarios={
        "19-1/overlapped": (10410, 548),
        "19-1/disjoint": (10034, 548),
        "15-5/overlapped": (9568, 2145),
        "15-5/disjoint": (8437, 2145),
        "15-1/overlapped": (9568, 487, 299, 491, 500, 548),
        "15-1/disjoint": (8437, 378, 299, 420, 500, 548),
        "10-1/overlapped": (6139, 528, 1177, 444, 482, 3898, 487, 299, 491, 500, 548),
        "10-1/disjoint": (3706, 188, 868, 227, 201, 3247, 378, 299, 420, 500, 548),
        "5-3/overlapped": (2836, 2331, 1542, 2095, 4484, 1468),
        "5-3/disjoint": (1753, 1517, 624, 1296, 3924, 1468),
        "5-5/overlapped": (2836, 3604, 5542, 2145),
        "5-5/disjoint": (1753, 1953, 4731, 2145),
        "2-2/overlapped": (1072, 1151, 1039, 2080, 1345, 1701, 925, 4236, 790, 1048),
        "2-2/disjoint": (653, 936, 303, 1378, 436, 1056, 428, 3625, 719, 1048),
    },
    ids_sha256={
        "train": "d1326bd532648d73bc4b1bd275434eba81930982dc7401a65a8cecb26c028e24",
        "val": "cdc1326d12f69ce5153aa5da04a4d8783e146868d42d19f82f44e74b97ac907d",
    },
    with_void=1464,
)

ADE = Reference(
    images={"train": 20210, "val": 2000},
    class_images={
        "train": (
            11588, 6042, 8240, 9314, 6674, 6579, 3990, 1825, 4687, 2421, 2851, 3061, 5069, 1791, 3276, 4266, 1690,
            3995, 2148, 3258, 3161, 702, 3295, 1191, 1404, 667, 650, 1229, 1132, 479, 1172, 521, 1385, 698, 781,
            378, 3083, 404, 803, 1447, 411, 1437, 799, 2646, 549, 367, 310, 1181, 287, 468, 402, 130, 561, 880, 84,
            172, 198, 930, 139, 564, 320, 261, 275, 335, 792, 395, 1308, 1112, 266, 658, 330, 531, 369, 144, 265,
            324, 304, 170, 68, 65, 247, 492, 2508, 440, 135, 583, 532, 1987, 71, 618, 133, 83, 178, 992, 181, 451,
            41, 307, 965, 117, 354, 108, 556, 52, 99, 57, 66, 77, 340, 66, 465, 50, 622, 80, 59, 530, 282, 73, 213,
            136, 116, 266, 58, 417, 319, 1191, 97, 347, 52, 246, 108, 201, 284, 268, 1020, 1281, 528, 452, 671, 397,
            92, 228, 556, 217, 206, 126, 178, 504, 773, 421,
        ),
        "val": (
            1167, 616, 800, 923, 645, 648, 407, 189, 461, 227, 290, 311, 532, 190, 321, 414, 161, 445, 218, 320,
            309, 75, 316, 106, 134, 69, 57, 123, 123, 45, 98, 56, 138, 61, 73, 43, 303, 37, 100, 153, 37, 163, 78,
            302, 46, 36, 30, 122, 23, 38, 43, 12, 64, 102, 14, 11, 18, 109, 18, 52, 26, 29, 22, 60, 75, 49, 138,
            113, 27, 66, 31, 56, 36, 9, 29, 33, 27, 20, 6, 8, 26, 49, 271, 39, 15, 56, 62, 240, 5, 53, 14, 5, 17,
            103, 12, 51, 7, 31, 114, 13, 35, 9, 56, 4, 5, 4, 9, 9, 38, 3, 49, 4, 75, 9, 3, 72, 30, 7, 18, 25, 24,
            31, 12, 84, 43, 141, 23, 36, 5, 22, 13, 30, 21, 27, 108, 122, 65, 57, 100, 44, 8, 18, 55, 22, 19, 14,
            28, 57, 95, 56,
        ),
    },
    scenarios={
        "100-50/overlapped": (20192, 9390),
        "100-50/disjoint": (10806, 9390),
        "100-50/partitioned": (13452, 6744),
        "100-10/overlapped": (20192, 1710, 2294, 2747, 4279, 2844),
        "100-10/disjoint": (10806, 861, 1009, 1445, 3231, 2844),
        "100-10/partitioned": (13452, 1130, 1200, 1366, 1550, 1498),
        "50-50/overlapped": (20177, 13186, 9390),
        "50-50/disjoint": (4838, 5968, 9390),
        "50-50/partitioned": (8219, 6384, 5593),
    },
    ids_sha256={
        "train": "6bb3631cc6ddf61eca5a9427027776105361247c675064347e7d711dd847c408",
        "val": "302fe0402c1fa1a83d54bc5d20723d53e2367320105f036673dafb1bd88aff9d",
    },
)

# fmt: on
CITYSCAPES = Reference(images={"train": 2975, "val": 500})

REFERENCES = {
    "voc": VOC,
    "ade": ADE,
    **dict.fromkeys(("cityscapes", "cityscapes-awt", "cityscapes-bacs"), CITYSCAPES),
}
