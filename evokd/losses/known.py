"""Published losses as points of the language, each with its source. Weights and temperatures are those of the papers' CIFAR-100 settings.

Each is tested against its published formula in plain torch; where a paper sums over something that this language averages, the factor is
in the weight or stated here. They seed populations (`--seed-with`) and are baselines. Losses with trained parts or memory are in
`modules.py`.
"""

_P4 = "softmax_C(temper(logits, tau=4))"
_KL = " + ".join(f"{{}}*kl(logits, tau={tau})" for tau in (2, 3, 4, 5, 6))

KNOWN: dict[str, str] = {
    # Hinton et al. 2015, eq. 4 with the factor τ²; τ = 4 as in CRD's benchmark, which weighs it 0.9 beside 0.1 CE
    "kd": "0.9*kl(logits, tau=4)",
    # Ba & Caruana, NeurIPS 2014: regression on logits, as a mean over classes
    "logits": "l2(logits)",
    # Li et al. (AKD), CVPR 2020, eq. 2: cross-entropy with the teacher's probabilities, α = 0.9, without τ²
    "akd": "0.9*ce(logits, tau=1)",
    # Romero et al., ICLR 2015, eq. 3 (connector on the student); weight 100 in CRD's benchmark
    "fitnet": "100*l2(features[-2])",
    # Zagoruyko & Komodakis, ICLR 2017, eq. 2 with p = 2, mean over positions; weight 1000 in CRD's benchmark, every stage
    "at": " + ".join(f"1000*l2(norm_HW(mean_C(pow2(features[-{i}]))))" for i in (1, 2, 3)),
    # Tung & Mori, ICCV 2019, eq. 4: mean over N² is their 1/b²; weight 3000 in CRD's benchmark
    "sp": "3000*l2(norm_C(mm(features[-1])))",
    # Peng et al. (CC), ICCV 2019, eqs. 5 and 7: Gaussian kernel of unit embeddings, γ = 0.4, exact where the paper takes a Taylor
    # series: e^(−2γ(1−cos)) = e^(−0.8) e^(cos/1.25); weight 0.02 in CRD's benchmark times e^(−1.6), the square of the first factor
    "cc": "0.0040379*l2(exp(temper(mm(norm_C(embedding)), tau=1.25)))",
    # Passalis & Tefas, ECCV 2018, eqs. 4–6: cosine kernel; weight 3e4 of CRD's benchmark is for a mean over N², here over N = 64
    "pkt": "468.75*divergence(sumnorm_C(scale(mm(norm_C(embedding)))))",
    # Park et al., CVPR 2019, eqs. 5–7 with weight 25 and 8–10 with weight 50
    "rkd_distance": "25*smooth_l1(meannorm(pdist(embedding)))",
    "rkd_angle": "50*smooth_l1(angle(embedding))",
    # Huang & Wang, arXiv 2017, eq. 5 with the kernel (xᵀy)²: MMD² of unit channels; weight 50 in CRD's benchmark.
    # Means over M² positions here where their Gram of channels sums: times M² it is theirs, so 50·8⁴ = 204800 for maps of 8×8
    "nst": "204800*l2(gram_HW(norm_HW(features[-1])))",
    # Yim et al., CVPR 2017, eqs. 1–2: FSP matrices of neighbouring stages; weight 50 in CRD's benchmark
    "fsp": "50*l2(cross(features[-3], features[-2])) + 50*l2(cross(features[-2], features[-1]))",
    # Liu et al., ICCV 2021: row-normalised channel Gram matrices, up to a constant (a mean over all entries here)
    "ickd": "2.5*l2(norm_C(bmm(features[-1])))",
    # Miles et al. (ITRD), BMVC 2022: correlation term on the embedding
    "itrd": "2*correlation(embedding)",
    # Huang et al., NeurIPS 2022, eqs. 7–10: inter- and intra-class relation, β = γ = 2 and τ = 4, each times τ²
    "dist": f"32*pearson({_P4}) + 32*pearson(transpose({_P4}))",
    # Shu et al. (CWD), ICCV 2021, eqs. 3–4: KL over the space of each channel, mean over channels, τ = 4 and their weight 3 for features
    "cwd": "3*kl(transpose(channel(features[-1])), tau=4)",
    # Liu et al. (SKD), CVPR 2019, eqs. 2–3: pair-wise affinity of positions after 2×2 max-pooling
    "skd_pairwise": "l2(affinity(scale_r2(features[-1])))",
    # Liu et al. (IRG), CVPR 2019, eqs. 2 and 3: vertices are logits, edges the squared distances divided by the greatest
    "irg_vertex": "l2(logits)",
    "irg_edge": "l2(min_max(pow2(pdist(embedding))))",
    # Zhou et al., ICLR 2021: sample-weighted KL, weight 2.25; their cross-entropy with soft targets has the same gradient
    "wsld": "2.25*focal*kl(logits, tau=4)",
    # Zhao et al., CVPR 2022, eq. 7: target class with α = 1 and the others with β = 8, τ = 4, each times τ²
    "dkd": "16*kl(gt_binary(temper(logits, tau=4)), tau=1) + 8*kl(gt_drop(logits), tau=4)",
    # Sun et al., CVPR 2024: KL of z-scored logits, τ = 2, weight 9
    "lskd": "9*kl(zscore_C(logits), tau=2)",
    # Zheng & Yang (WTTM), ICLR 2024, eqs. 6 and 9: the teacher's power transform with γ = 0.2 is its temperature 5, the student has none
    "wttm": "power_sum(tau=5)*kl(teacher.temper(logits, tau=5), tau=1)",
    # Jin et al. (MLKD), CVPR 2023, eqs. 3, 6, 9 on one view: instances at τ = 2…6 (a mean, weight 9), batch and class relations at τ = 4.
    # Their class Gram is divided by K and by K again, their batch Gram by N: the mean over entries here
    "mlkd": _KL.format(*[1.8] * 5) + f" + l2(mm(transpose({_P4}))) + l2(mm({_P4}))",
    # Chen et al. (ReviewKD), CVPR 2021, eq. 5: hierarchical context loss at full size, 4×4, 2×2 and 1×1, halved weights of sum 1
    "hcl": "0.533333*l2(features[-1]) + 0.266667*l2(pool_4(features[-1])) + 0.133333*l2(pool_2(features[-1]))"
    " + 0.0666667*l2(pool_1(features[-1]))",
    # Yang et al. (SRRL), ICLR 2021, eqs. 2 and 4: feature matching of pooled maps, and the teacher's classifier on the student
    "srrl_feature": "l2(mean_HW(features[-1]))",
    "srrl_regression": "l2(teacher_head)",
    # Heo et al. (OFD), ICCV 2019, eqs. 3–5: margin ReLU on the teacher, partial L2; their sums with weight 1e-3 are means here
    "ofd": "partial_l2(teacher.margin(pre_relu[-1])) + partial_l2(teacher.margin(pre_relu[-2])) + partial_l2(teacher.margin(pre_relu[-3]))",
    # Heo et al. (AB), AAAI 2019, eq. 5: the sign of the teacher's pre-activations with margin 1
    "ab": "hinge(pre_relu[-1]) + 0.5*hinge(pre_relu[-2]) + 0.25*hinge(pre_relu[-3])",
    # Wang et al. (MiniLM), NeurIPS 2020, eqs. 4–7: attention and value relations of the last layer; tokens stand for the values of one
    # head of 64 channels: XXᵀ/√64 = 8 XXᵀ/64
    "minilm": "kl(attention, tau=1) + kl(temper(gram_HW(tokens), tau=0.125), tau=1)",
    # Dong et al. (DisWOT†), CVPR 2023: KD with the semantic and the relation term, 1/c² and 1/b² as printed (norms not squared); the
    # semantic map is the class gradient, which is what their code computes
    "diswot": "kl(logits, tau=4) + frobenius(norm_all(mm(transpose(class_gradient(logits, embedding)))))"
    " + frobenius(norm_all(mm(features[-1])))",
}  # fmt: skip
