"""Published losses that train modules of their own or keep a memory, one `nn.Module` each, listed in `MODULES`.

A loss is built from example taps, which give the shapes, and a seed, and called like a compiled one (`program.py`): student,
teacher, labels, progress, generator, index. A signature names what the loss reads and lets the rest pass. The value is the
distillation term alone, a scalar of weight 1. Gradients reach the student and the loss's own parameters, which the student's
optimiser trains; the teacher is detached. `needs` lists the positions in use; `teacher_head` stands for the classifier among
the teacher's taps.

Shapes: N samples, K classes, D wide embeddings, maps of C channels and H×W pixels; s and t mark student and teacher.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evokd.errors import EvokdError
from evokd.losses.taps import Taps
from evokd.streams import derive

LAST = "features[-1]"
EPS = 1e-6  # keeps divisions finite


class CRD(nn.Module):
    """Tell the teacher's embedding of the same sample from those of other samples, and the other way round.

    Contrastive representation distillation (Tian et al., ICLR 2020, eq. 18). Both embeddings are mapped linearly to unit
    vectors g of width 128. Noise-contrastive estimation sets the pair (s, t) of one sample against M pairs with other samples
    out of a bank:

        −log h(s,t) − Σ_M log(1 − h(s,t')),   h(s,t) = e / (e + M),   e = exp(⟨g_s, g_t⟩ / T) / Z

    once with the student as anchor and the teacher's bank, once with the roles exchanged; mean over the batch, sum of both. As
    in the authors' code Z is estimated on the first batch, where it makes the mean of e one; the size of the data set cancels.

    The bank of a network holds the g of every sample seen so far, indexed by the sample, as a moving average. Here it grows as
    samples appear, where the authors fill it with noise beforehand; and a sample is never its own negative, which matters while
    it is small.

    Shapes: embeddings (N,Ds), (N,Dt).
    """

    needs = ("embedding",)
    negatives, temperature, momentum, width = 16384, 0.07, 0.5, 128

    def __init__(self, student: Taps, teacher: Taps, seed: int) -> None:
        super().__init__()
        with seeded(seed, "crd"):
            self.embed_s = nn.Linear(student.at("embedding").shape[1], self.width)
            self.embed_t = nn.Linear(teacher.at("embedding").shape[1], self.width)
        self.register_buffer("bank_s", torch.zeros(0, self.width))
        self.register_buffer("bank_t", torch.zeros(0, self.width))
        self.register_buffer("seen", torch.zeros(0, dtype=torch.bool))
        self.register_buffer("log_z", torch.full((2,), math.nan))

    def forward(
        self,
        student: Taps,
        teacher: Taps,
        labels: Tensor | None = None,
        progress: float = 1.0,
        generator: torch.Generator | None = None,
        index: Tensor | None = None,
    ) -> Tensor:
        if index is None:
            raise EvokdError("index", "the position of each sample in its data set, by which CRD remembers it", "None")
        s = F.normalize(self.embed_s(student.at("embedding")))
        t = F.normalize(self.embed_t(teacher.at("embedding").detach()))
        self._admit(index, s.detach(), t.detach())
        rows = self.seen.nonzero().squeeze(1)
        picks = self._picks(torch.searchsorted(rows, index), len(rows), present(generator))
        value = self._contrast(s, self.bank_t[rows], picks, 0) + self._contrast(t, self.bank_s[rows], picks, 1)
        self._store(index, s.detach(), t.detach())
        return value

    def _contrast(self, anchor: Tensor, bank: Tensor, picks: Tensor, side: int) -> Tensor:
        """The estimate for one anchor, mean over the batch; `picks` (N,1+M) are rows of the bank, the positive first."""
        scores = (anchor @ bank.T).gather(1, picks) / self.temperature
        if self.log_z[side].isnan():
            self.log_z[side] = scores.detach().exp().mean().log()
        # h = sigmoid(log(e / M)), so both logarithms are softplus and cannot overflow
        odds = scores - self.log_z[side] - math.log(max(picks.shape[1] - 1, 1))
        return (F.softplus(-odds[:, 0]) + F.softplus(odds[:, 1:]).sum(1)).mean()

    def _picks(self, own: Tensor, rows: int, generator: torch.Generator) -> Tensor:
        """Each sample's own row, then M others drawn uniformly with replacement; none while there are no others."""
        if rows == 1:
            return own[:, None]
        others = torch.randint(rows - 1, (len(own), self.negatives), generator=generator, device=generator.device).to(own.device)
        return torch.cat((own[:, None], others + (others >= own[:, None])), 1)  # step over the own row

    @torch.no_grad()
    def _admit(self, index: Tensor, s: Tensor, t: Tensor) -> None:
        """Give every new sample a row that holds its present embedding."""
        missing = int(index.max()) + 1 - len(self.seen)
        if missing > 0:
            self.bank_s, self.bank_t = (F.pad(bank, (0, 0, 0, missing)) for bank in (self.bank_s, self.bank_t))
            self.seen = torch.cat((self.seen, self.seen.new_zeros(missing)))
        new = ~self.seen[index]
        self._store(index[new], s[new], t[new])
        self.seen[index] = True

    @torch.no_grad()
    def _store(self, index: Tensor, s: Tensor, t: Tensor) -> None:
        """Move rows towards embeddings; a row of zeros becomes the embedding itself."""
        for bank, value in ((self.bank_s, s), (self.bank_t, t)):
            bank[index] = F.normalize(self.momentum * bank[index] + (1 - self.momentum) * value)

    def _load_from_state_dict(self, state: dict, prefix: str, *args: object) -> None:
        for name in ("bank_s", "bank_t", "seen"):  # the saved banks may have grown
            saved = state.get(prefix + name, getattr(self, name))
            setattr(self, name, torch.empty_like(saved, device=self.log_z.device))
        super()._load_from_state_dict(state, prefix, *args)


class VID(nn.Module):
    """Let the student predict the teacher's maps under a Gaussian whose variance per channel is learned.

    Variational information distillation (Ahn et al., CVPR 2019): with a regressor μ of three 1×1 convolutions

        ½ · mean[ (F_t − μ(F_s))² / σ_c² + log σ_c² ],   σ_c² = softplus(α_c) + 1e-5, at first 5

    summed over the last stages, three at most. The larger map is average-pooled to the size of the smaller one.

    Shapes: features (N,Cs,H,W), (N,Ct,H',W') of every stage.
    """

    def __init__(self, student: Taps, teacher: Taps, seed: int) -> None:
        super().__init__()
        self.needs = stages(student, teacher)
        widths = [(student.at(position).shape[1], teacher.at(position).shape[1]) for position in self.needs]
        with seeded(seed, "vid"):
            self.means = nn.ModuleList(self._regressor(s, t) for s, t in widths)
        self.alphas = nn.ParameterList(torch.full((t,), math.log(math.expm1(5 - 1e-5))) for _, t in widths)

    def forward(self, student: Taps, teacher: Taps, *_: object, **__: object) -> Tensor:
        terms = []
        for position, mean, alpha in zip(self.needs, self.means, self.alphas, strict=True):
            s, t = at_smaller_size(student.at(position), teacher.at(position).detach())
            variance = (F.softplus(alpha) + 1e-5)[:, None, None]
            terms.append(((t - mean(s)).square() / variance + variance.log()).mean() / 2)
        return sum(terms)

    @staticmethod
    def _regressor(s: int, t: int) -> nn.Sequential:
        return nn.Sequential(conv(s, t), nn.ReLU(), conv(t, t), nn.ReLU(), conv(t, t))


class FT(nn.Module):
    """Match the direction of the student's factors with that of the teacher's, both found by small convolutional networks.

    Factor transfer (Kim et al., NeurIPS 2018): the paraphraser P is the encoder of an autoencoder of the teacher's last map,
    with half as many factors as channels; the translator Q maps the student's last map to as many factors:

        mean|Q/‖Q‖ − P/‖P‖| + mean(decode(P) − F_t)²

    The paper trains the paraphraser beforehand and then freezes it. Here it is trained along with the student, by its
    reconstruction error alone (the second term): the first term's gradient stops at P, or teacher and student could agree on
    saying nothing. The larger factors are average-pooled to the size of the smaller ones. Without batch normalisation, as in
    common benchmarks.

    Shapes: features[-1] (N,Cs,H,W), (N,Ct,H',W').
    """

    needs = (LAST,)

    def __init__(self, student: Taps, teacher: Taps, seed: int) -> None:
        super().__init__()
        s, t = student.at(LAST).shape[1], teacher.at(LAST).shape[1]
        factors = max(t // 2, 1)
        with seeded(seed, "ft"):
            self.paraphraser = self._convolutions((t, t, factors, factors))
            self.decoder = self._convolutions((factors, factors, t, t))
            self.translator = self._convolutions((s, s, factors, factors))

    def forward(self, student: Taps, teacher: Taps, *_: object, **__: object) -> Tensor:
        target = teacher.at(LAST).detach()
        paraphrase = self.paraphraser(target)
        s, t = at_smaller_size(self.translator(student.at(LAST)), paraphrase.detach())
        transfer = F.l1_loss(F.normalize(s.flatten(1)), F.normalize(t.flatten(1)))
        return transfer + F.mse_loss(self.decoder(paraphrase), target)

    @staticmethod
    def _convolutions(widths: Sequence[int]) -> nn.Sequential:
        return nn.Sequential(*(nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.LeakyReLU(0.1)) for i, o in pairwise(widths)))


class MGD(nn.Module):
    """Have the teacher's whole map generated from the student's map with most pixels masked.

    Masked generative distillation (Yang et al., ECCV 2022): with a 1×1 convolution A where channels differ and the generator
    G = conv3 – ReLU – conv3

        Σ_{C,H,W} (F_t − G(M · A(F_s)))², mean over the batch;   M (N,1,H,W) is 0 with probability λ = 0.65, else 1

    A sum, so it is large: the paper weighs it by 7e-5 (ImageNet) and 2e-5 (detection). Its spatial mask is used here; the
    authors' code for classification masks 15 % of the channels. The student's map takes the teacher's size first.

    Shapes: features[-1] (N,Cs,H,W), (N,Ct,H',W').
    """

    needs = (LAST,)
    masked = 0.65

    def __init__(self, student: Taps, teacher: Taps, seed: int) -> None:
        super().__init__()
        s, t = student.at(LAST).shape[1], teacher.at(LAST).shape[1]
        with seeded(seed, "mgd"):
            self.align = nn.Conv2d(s, t, 1) if s != t else nn.Identity()
            self.generate = nn.Sequential(nn.Conv2d(t, t, 3, padding=1), nn.ReLU(), nn.Conv2d(t, t, 3, padding=1))

    def forward(
        self,
        student: Taps,
        teacher: Taps,
        labels: Tensor | None = None,
        progress: float = 1.0,
        generator: torch.Generator | None = None,
        index: Tensor | None = None,
    ) -> Tensor:
        source, target = present(generator), teacher.at(LAST).detach()
        f = self.align(resize(student.at(LAST), target.shape[2:]))
        keep = torch.rand(len(f), 1, *f.shape[2:], generator=source, device=source.device) >= self.masked
        return (self.generate(f * keep.to(f)) - target).square().flatten(1).sum(1).mean()


class ReviewKD(nn.Module):
    """Let the student's early stages, helped by its later ones, match the teacher's early stages.

    Knowledge review (Chen et al., CVPR 2021): going from the last stage back, attention-based fusion (`Fusion`) joins a stage
    with what the later ones left, and hierarchical context loss compares the result with the teacher's map of that stage:

        Σ_stages HCL(fusion(F_s, later), F_t)

    over the last stages, three at most. The authors also review the pooled embedding as one more stage.

    Shapes: features (N,Cs,H,W), (N,Ct,H',W') of every stage.
    """

    def __init__(self, student: Taps, teacher: Taps, seed: int) -> None:
        super().__init__()
        self.needs = stages(student, teacher)
        middle = min(512, student.at(LAST).shape[1])
        with seeded(seed, "reviewkd"):
            self.fusions = nn.ModuleList(
                Fusion(student.at(p).shape[1], middle, teacher.at(p).shape[1], fuse=p != LAST) for p in self.needs
            )

    def forward(self, student: Taps, teacher: Taps, *_: object, **__: object) -> Tensor:
        terms, later = [], None
        for position, fusion in zip(self.needs, self.fusions, strict=True):
            target = teacher.at(position).detach()
            f, later = fusion(student.at(position), later, target.shape[2:])
            terms.append(hierarchical_context(f, target))
        return sum(terms)


class Fusion(nn.Module):
    """Attention-based fusion: x = gate₁ · reduce(F_s) + gate₂ · later, gates (N,2,H,W) in 0…1 from both; gives (expand(x), x)."""

    def __init__(self, inputs: int, middle: int, outputs: int, fuse: bool) -> None:
        super().__init__()
        self.reduce = connector(inputs, middle, relu=False)
        self.gates = nn.Conv2d(2 * middle, 2, 1) if fuse else None
        self.expand = connector(middle, outputs, kernel=3, relu=False)

    def forward(self, f: Tensor, later: Tensor | None, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        f = self.reduce(f)
        if self.gates is not None:
            later = F.interpolate(later, f.shape[2:])
            gates = self.gates(torch.cat((f, later), 1)).sigmoid()
            f = f * gates[:, :1] + later * gates[:, 1:]
        f = F.interpolate(f, size)
        return self.expand(f), f


def hierarchical_context(s: Tensor, t: Tensor) -> Tensor:
    """Mean squared error of the maps and of their pools to 4×4, 2×2, 1×1 where smaller; weights 1, ½, ¼, ⅛ over their sum."""
    pools = [k for k in (4, 2, 1) if k < min(t.shape[2:])]
    gaps = [F.mse_loss(s, t), *(F.mse_loss(F.adaptive_avg_pool2d(s, k), F.adaptive_avg_pool2d(t, k)) for k in pools)]
    weights = [0.5**i for i in range(len(gaps))]
    return sum(w * gap for w, gap in zip(weights, gaps, strict=True)) / sum(weights)


class SRRL(nn.Module):
    """Bring the student's embedding to the teacher's, and judge it by the teacher's classifier as well.

    Softmax regression representation learning (Yang et al., ICLR 2021): with r = 1×1 convolution – batch norm – ReLU

        mean(pool(r(F_s)) − e_t)² + mean(W_t · pool(r(F_s)) + b_t − z_t)²

    The teacher's embedding e_t stands for pool(F_t): what its classifier reads, and the same thing in a network with global
    pooling.

    Shapes: student features[-1] (N,C,H,W); teacher embedding (N,D), logits (N,K), head (K,D), (K,).
    """

    needs = (LAST, "embedding", "logits", "teacher_head")

    def __init__(self, student: Taps, teacher: Taps, seed: int) -> None:
        super().__init__()
        head_of(teacher)
        with seeded(seed, "srrl"):
            self.connector = connector(student.at(LAST).shape[1], teacher.at("embedding").shape[1])

    def forward(self, student: Taps, teacher: Taps, *_: object, **__: object) -> Tensor:
        embedding = self.connector(student.at(LAST)).mean((2, 3))
        logits = F.linear(embedding, *head_of(teacher))
        return F.mse_loss(embedding, teacher.at("embedding").detach()) + F.mse_loss(logits, teacher.logits.detach())


class SimKD(nn.Module):
    """Bring the student's last map to the teacher's through a bottleneck projector.

    Knowledge distillation with the reused teacher classifier (Chen et al., CVPR 2022): mean(P(F_s) − F_t)², where the larger
    map is average-pooled to the size of the smaller one, and the projector P is 1×1, 3×3, 1×1 convolutions with batch norm and
    ReLU, half of the teacher's channels wide inside.

    At inference SimKD puts projector and teacher's classifier on top of the student, and trains by this term alone. This loss
    does only the training: the student keeps its own classifier, which needs a task loss beside it.

    Shapes: features[-1] (N,Cs,H,W), (N,Ct,H',W').
    """

    needs = (LAST,)

    def __init__(self, student: Taps, teacher: Taps, seed: int) -> None:
        super().__init__()
        s, t = student.at(LAST).shape[1], teacher.at(LAST).shape[1]
        inside = max(t // 2, 1)
        with seeded(seed, "simkd"):
            self.projector = nn.Sequential(connector(s, inside), connector(inside, inside, kernel=3), connector(inside, t))

    def forward(self, student: Taps, teacher: Taps, *_: object, **__: object) -> Tensor:
        s, t = at_smaller_size(student.at(LAST), teacher.at(LAST).detach())
        return F.mse_loss(self.projector(s), t)


class IPWD(nn.Module):
    """Soft labels in which samples that the teacher's knowledge under-represents weigh more.

    Inverse probability weighting distillation (Niu et al., NeurIPS 2022): the propensity of a sample to belong to the teacher's
    domain is read off two classifiers on one student, its own (`kd`), which distillation trains, and a second one (`cls`),
    which only labels train. With H the cross-entropy with the label, of logits standardised per sample,

        mean[w · τ² KL(p_t ‖ p_s)],   w = 1 / propensity = 1 + H(cls) / H(kd),   τ = 4

    plus the cross-entropy that trains the second classifier. The weights carry no gradient. The formula of w is taken from
    summaries of the paper. Here the second classifier reads the embedding detached, so that labels train nothing else: the
    student hears of them through its task loss. A sample without label counts as equally likely in both domains, w = 2.

    Shapes: logits (N,K) of both; student embedding (N,D).
    """

    needs = ("logits", "embedding")
    temperature = 4.0

    def __init__(self, student: Taps, teacher: Taps, seed: int) -> None:
        super().__init__()
        check_classes(student, teacher)
        with seeded(seed, "ipwd"):
            self.classifier = nn.Linear(student.at("embedding").shape[1], student.logits.shape[1])

    def forward(self, student: Taps, teacher: Taps, labels: Tensor | None = None, *_: object, **__: object) -> Tensor:
        if labels is None:
            labels = torch.full((len(student.logits),), -1, device=student.logits.device)
        logits = self.classifier(student.at("embedding").detach())
        weight = self._weight(student.logits.detach(), logits.detach(), labels)
        tau = self.temperature
        distillation = (weight * divergence(student.logits / tau, teacher.logits.detach() / tau)).mean() * tau**2
        return distillation + cross_entropy(logits, labels).sum() / (labels >= 0).sum().clamp(min=1)

    @staticmethod
    def _weight(kd: Tensor, cls: Tensor, labels: Tensor) -> Tensor:
        ratio = cross_entropy(standardised(cls), labels) / cross_entropy(standardised(kd), labels).clamp(min=EPS)
        return torch.where(labels >= 0, 1 + ratio, 2.0)


class ATKD(nn.Module):
    """Soft labels under temperatures of their own for teacher and student, per sample, so that both are equally sharp.

    Adaptive temperature distillation (Guo, 2021, "Reducing the Teacher-Student Gap via Adaptive Temperatures"). Sharpness is
    the logsumexp of the logits; to second order, for logits of mean zero and deviation σ, logsumexp(z/τ) ≈ log K + σ²/2τ².
    Teacher and student are equally sharp where τ is proportional to σ:

        mean[τ_s² KL(softmax(z_t/τ_t) ‖ softmax(z_s/τ_s))],   τ = 2σ(z), no gradient

    What is public of the paper fixes the metric, its expansion and that both temperatures adapt. The factors are chosen here: 2,
    to which public code of this family comes (logits standardised, doubled, softened by 4), and τ_s², which keeps the gradient's
    scale as in plain distillation.

    Shapes: logits (N,K) of both. Nothing is trained.
    """

    needs = ("logits",)
    per_deviation = 2.0

    def __init__(self, student: Taps, teacher: Taps, seed: int) -> None:
        super().__init__()
        check_classes(student, teacher)

    def forward(self, student: Taps, teacher: Taps, *_: object, **__: object) -> Tensor:
        s, t = student.logits, teacher.logits.detach()
        tau_s, tau_t = self.per_deviation * deviation(s.detach()), self.per_deviation * deviation(t)
        return (tau_s.squeeze(1).square() * divergence(s / tau_s, t / tau_t)).mean()


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation that takes its running statistics where a batch holds one value per channel, which has no variance."""

    def forward(self, f: Tensor) -> Tensor:
        if self.training and f.shape[0] * f.shape[2] * f.shape[3] == 1:
            return F.batch_norm(f, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(f)


def conv(inputs: int, outputs: int, kernel: int = 1) -> nn.Conv2d:
    """A convolution that keeps the size, without bias."""
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)


def connector(inputs: int, outputs: int, kernel: int = 1, relu: bool = True) -> nn.Sequential:
    """Convolution – batch norm, then ReLU unless told otherwise."""
    return nn.Sequential(conv(inputs, outputs, kernel), BatchNorm(outputs), *([nn.ReLU()] if relu else []))


@contextmanager
def seeded(seed: int, name: str) -> Iterator[None]:
    """Inside, layers are initialised from (seed, name); torch's global state is afterwards what it was before."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(derive(seed, name))
        yield


def present(generator: torch.Generator | None) -> torch.Generator:
    """The generator, which a loss that draws cannot do without."""
    if generator is None:
        raise EvokdError("generator", "a generator, as this loss draws at random", "None")
    return generator


def stages(student: Taps, teacher: Taps) -> tuple[str, ...]:
    """Positions of the stages that both networks show, the last first, three at most."""
    count = min(len(student.features), len(teacher.features), 3)
    if not count:
        student.at(LAST), teacher.at(LAST)  # says who lacks it
    return tuple(f"features[{-i}]" for i in range(1, count + 1))


def head_of(teacher: Taps) -> tuple[Tensor, Tensor]:
    """The teacher's classifier: weight (K,D), bias (K,)."""
    if teacher.head is None:
        raise EvokdError("teacher_head", "a teacher that shows its classifier", "none")
    weight, bias = teacher.head
    return weight.detach(), bias.detach()


def check_classes(student: Taps, teacher: Taps) -> None:
    """Logits are compared class by class."""
    s, t = student.logits.shape[1], teacher.logits.shape[1]
    if s != t:
        raise EvokdError("loss", f"student and teacher of equally many classes ({t})", str(s))


def at_smaller_size(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps average-pooled to the smaller height and the smaller width of the two."""
    size = (min(s.shape[2], t.shape[2]), min(s.shape[3], t.shape[3]))
    return resize(s, size), resize(t, size)


def resize(f: Tensor, size: Sequence[int]) -> Tensor:
    """Average pooling to a smaller size, bilinear interpolation to a larger one."""
    if f.shape[2] >= size[0] and f.shape[3] >= size[1]:
        return F.adaptive_avg_pool2d(f, tuple(size))
    return F.interpolate(f, tuple(size), mode="bilinear", align_corners=False)


def divergence(s: Tensor, t: Tensor) -> Tensor:
    """KL(softmax(t) ‖ softmax(s)) of each row, (N,)."""
    return F.kl_div(s.log_softmax(1), t.log_softmax(1), reduction="none", log_target=True).sum(1)


def deviation(z: Tensor) -> Tensor:
    """Standard deviation of each row, (N,1)."""
    return z.std(1, correction=0, keepdim=True).clamp(min=EPS)


def standardised(z: Tensor) -> Tensor:
    """Rows of mean 0 and deviation 1."""
    return (z - z.mean(1, keepdim=True)) / deviation(z)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each sample (N,), 0 where the label is unknown."""
    return F.cross_entropy(logits, labels, ignore_index=-1, reduction="none")


MODULES: dict[str, type[nn.Module]] = {
    "crd": CRD,
    "vid": VID,
    "ft": FT,
    "mgd": MGD,
    "reviewkd": ReviewKD,
    "srrl": SRRL,
    "simkd": SimKD,
    "ipwd": IPWD,
    "atkd": ATKD,
}
