"""The survey table of KD-Zero's slides (after Wang & Yoon, TPAMI 2021) with evokd's verdict on every row.

`tree`: a loss of the language, as printed in the row; `module`: a loss with trained parts; `schedule`: a tree whose stages follow training;
`refused`: with the reason. A discriminator, a second classifier or several teachers are never part of a distillation term here.
"""

from dataclasses import dataclass

from evokd.losses.known import KNOWN


@dataclass(frozen=True)
class Row:
    """One method: the table's columns, the verdict, and a loss in evokd's notation (empty if refused)."""

    method: str
    teacher: str
    student: str
    position: str
    distance: str
    lost: str
    verdict: str
    loss: str = ""
    note: str = ""


SURVEY = (
    Row("FitNet", "none", "1×1 conv", "middle layer", "L1", "none", "tree", "l1(features[-2])", "the paper has L2"),
    Row("AT", "attention map", "attention map", "end of layer group", "L2", "channels", "tree", KNOWN["at"]),
    Row(
        "KP", "projection matrix", "projection matrix", "middle layers", "L1 + KP loss", "space", "tree", "l1(features[-2])",
        "the student's projection is the connector; the path through it to a second classifier is left out",
    ),
    Row("FSP", "FSP matrix", "FSP matrix", "end of layer group", "L2", "space", "tree", KNOWN["fsp"]),
    Row("FT", "encoder–decoder", "encoder–decoder", "end of layer group", "L1", "channels, space", "module", "ft"),
    Row("MINILM", "self-attention", "self-attention", "end of layer group", "KL", "channels", "tree", KNOWN["minilm"]),
    Row(
        "Jacobian", "gradient penalty", "gradient penalty", "end of layer group", "L2", "channels", "refused", "",
        "needs the gradient for the image, a second pass through both networks that taps do not hold",
    ),
    Row(
        "SVD", "truncated SVD", "truncated SVD", "end of layer group", "L2", "space", "refused", "",
        "singular vectors have no sign and no order where singular values meet, so value and gradient are not defined everywhere",
    ),
    Row("VID", "none", "1×1 conv", "middle layers", "KL", "none", "module", "vid"),
    Row(
        "IRG", "instance graph", "instance graph", "middle layers", "L2", "space", "tree",
        f"{KNOWN['irg_vertex']} + {KNOWN['irg_edge']}", "vertices and edges; the transformation is the row of Liu",
    ),
    Row(
        "RCO", "none", "none", "teacher's train route", "L2", "none", "schedule", "l2(logits)",
        "a tree on each of the teacher's checkpoints in turn; a run has one teacher",
    ),
    Row("SP", "similarity matrix", "similarity matrix", "middle layer", "Frobenius norm", "none", "tree", KNOWN["sp"]),
    Row(
        "MEAL", "adaptive pooling", "adaptive pooling", "end of layer group", "L1/L2/KL/GAN", "none", "tree",
        "l1(pool_1(features[-1])) + l2(pool_2(features[-2])) + kl(logits, tau=1)", "without the discriminator",
    ),
    Row("Heo", "margin ReLU", "1×1 conv", "pre-ReLU", "partial L2", "negative features", "tree", KNOWN["ofd"]),
    Row("AB", "binarization", "1×1 conv", "pre-ReLU", "margin L2", "feature values", "tree", KNOWN["ab"]),
    Row(
        "Chung", "none", "none", "end of layer", "GAN", "none", "refused", "",
        "an adversarial loss: its discriminator needs an optimiser of its own",
    ),
    Row(
        "Wang", "none", "adaptation layer", "middle layer", "margin L1", "channels, space", "tree",
        "l1(teacher.margin(pre_relu[-2]))", "the citation is ambiguous; L1 to the margin ReLU behind the connector is what the row says",
    ),
    Row(
        "KSANC", "average pooling", "average pooling", "middle layers", "L2 + GAN", "space", "tree",
        "l2(pool_1(features[-2])) + kl(logits, tau=1)", "without the discriminator",
    ),
    Row(
        "Kulkarni", "none", "none", "end of layer group", "L2", "none", "schedule",
        "step(1, 0)*l2(features[-2]) + step(0, 1)*l2(features[-1])", "stage after stage",
    ),
    Row(
        "IR", "attention matrix", "attention matrix", "middle layers", "KL + cosine", "none", "tree",
        "kl(attention, tau=1) + cosine(tokens)",
    ),
    Row(
        "Liu", "transform matrix", "transform matrix", "middle layers", "KL", "space", "tree",
        "kl(cross(features[-3], features[-2]), tau=1)", "the citation is IRG's; KL of the matrix between two layers is what the row says",
    ),
    Row("NST", "none", "none", "intermediate layers", "MMD", "none", "tree", KNOWN["nst"]),
    Row(
        "Gao", "none", "none", "intermediate layers", "L2", "none", "schedule",
        "step(1, 0)*l2(features[-1]) + step(0, 1)*kl(logits, tau=1)", "features first, then the classifier",
    ),
)  # fmt: skip
