"""Published losses as points of the language. Weights and temperatures are those of the papers' CIFAR-100 settings.

Each is tested against its published formula in plain torch. They seed populations (`--seed-with`) and are baselines.
"""

KNOWN: dict[str, str] = {
    # Hinton et al. 2015, eq. 4 with the factor τ²; τ = 4 as in CRD's benchmark, which weighs it 0.9 beside 0.1 CE
    "kd": "0.9*kl(logits, tau=4)",
    # Romero et al., ICLR 2015, eq. 3 (connector on the student); weight 100 in CRD's benchmark
    "fitnet": "100*l2(features[-2])",
    # Zagoruyko & Komodakis, ICLR 2017, eq. 2 with p = 2, mean over positions; weight 1000 in CRD's benchmark, every stage
    "at": "1000*l2(norm_HW(mean_C(pow2(features[-1])))) + 1000*l2(norm_HW(mean_C(pow2(features[-2]))))"
    " + 1000*l2(norm_HW(mean_C(pow2(features[-3]))))",
    # Tung & Mori, ICCV 2019, eq. 4: mean over N² is their 1/b²; weight 3000 in CRD's benchmark
    "sp": "3000*l2(norm_C(mm(features[-1])))",
    # Huang et al., NeurIPS 2022, eqs. 7–10: inter- and intra-class relation, β = γ = 2 and τ = 4, each times τ²
    "dist": "32*pearson(softmax_C(temper(logits, tau=4))) + 32*pearson(transpose(softmax_C(temper(logits, tau=4))))",
    # Sun et al., CVPR 2024: KL of z-scored logits, τ = 2, weight 9
    "lskd": "9*kl(zscore_C(logits), tau=2)",
    # Ba & Caruana, NeurIPS 2014: regression on logits, as a mean over classes
    "logits": "l2(logits)",
    # Liu et al., ICCV 2021: row-normalised channel Gram matrices, up to a constant (a mean over all entries here)
    "ickd": "2.5*l2(norm_C(bmm(features[-1])))",
    # Miles et al. (ITRD), BMVC 2022: correlation term on the embedding
    "itrd": "2*correlation(embedding)",
    # Zhou et al., ICLR 2021: sample-weighted KL, weight 2.25; their cross-entropy with soft targets has the same gradient
    "wsld": "2.25*focal*kl(logits, tau=4)",
}
