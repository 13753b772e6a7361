"""Published losses as points of the language, each with its source. Weights and temperatures are those of the papers' CIFAR-100 settings,
where they have any.

Each is tested against its published formula in plain torch; where a paper sums over something that this language averages, the factor is
in the weight or stated here, for the shape of CRD's benchmark with ResNet-32×4 → ResNet-8×4: N = 64 samples, K = 100 classes, a last
stage of 256×8×8, and in every stage before it half the channels and twice the sides. They seed populations (`--seed-with`) and are
baselines. Losses with trained parts or memory are in `modules.py`.
"""

_P4 = "softmax_C(temper(logits, tau=4))"
_KL = " + ".join(f"0.9*kl(logits, tau={tau})" for tau in (2, 3, 4, 5, 6))

KNOWN: dict[str, str] = {
    # Hinton et al. 2015, section 2, with their factor τ²; τ = 4 as in CRD's benchmark, which weighs it 0.9 beside 0.1 CE
    "kd": "0.9*kl(logits, tau=4)",
    # Ba & Caruana, NeurIPS 2014: regression on logits, as a mean over classes
    "logits": "l2(logits)",
    # Liu et al. (AKD), CVPR 2020: α·CE with the teacher's probabilities, without τ²; α = 0.9 and τ = 1 are our choice
    "akd": "0.9*ce(logits, tau=1)",
    # Romero et al. (FitNets), ICLR 2015: hint on a middle stage (connector on the student); weight 100 in CRD's benchmark
    "fitnet": "100*l2(features[-2])",
    # Zagoruyko & Komodakis, ICLR 2017, with p = 2 and a mean over positions; weight 1000 in CRD's benchmark, every stage
    "at": " + ".join(f"1000*l2(norm_HW(mean_C(pow2(features[-{i}]))))" for i in (1, 2, 3)),
    # Tung & Mori, ICCV 2019: mean over N² is their 1/b²; weight 3000 in CRD's benchmark
    "sp": "3000*l2(norm_C(mm(features[-1])))",
    # Peng et al. (CC), ICCV 2019: Gaussian kernel of unit embeddings, γ = 0.4, exact where the paper takes a Taylor series:
    # e^(−γ‖x−y‖²) = e^(−0.8) e^(cos/1.25). Weight 0.02, which CRD's benchmark gives to a simpler form, times e^(−1.6), the square
    # of the first factor
    "cc": "0.00403793*l2(exp(temper(mm(norm_C(embedding)), tau=1.25)))",
    # Passalis & Tefas, ECCV 2018: cosine kernel; weight 3e4 of CRD's benchmark is for a mean over N², here over N = 64
    "pkt": "468.75*divergence(sumnorm_C(scale(mm(norm_C(embedding)))))",
    # Park et al., CVPR 2019: distances with weight 25 and angles with weight 50, as in CRD's benchmark
    "rkd_distance": "25*smooth_l1(meannorm(pdist(embedding)))",
    "rkd_angle": "50*smooth_l1(angle(embedding))",
    # Huang & Wang, arXiv 2017, with the kernel (xᵀy)²: MMD² of unit channels; weight 50 in CRD's benchmark, there on every stage.
    # Means over M² positions here where their Gram of channels sums: times M² it is theirs, so 50·8⁴ = 204800 for maps of 8×8
    "nst": "204800*l2(gram_HW(norm_HW(features[-1])))",
    # Yim et al., CVPR 2017: FSP matrices of neighbouring stages, max-pooled to one size; weight 50 in CRD's benchmark
    "fsp": "50*l2(cross(features[-3], features[-2])) + 50*l2(cross(features[-2], features[-1]))",
    # Liu et al., ICCV 2021: row-normalised channel Gram matrices, up to a constant (a mean over all entries here)
    "ickd": "2.5*l2(norm_C(bmm(features[-1])))",
    # Miles et al. (ITRD), BMVC 2022: correlation term on the embedding
    "itrd": "2*correlation(embedding)",
    # Huang et al. (DIST), NeurIPS 2022: inter- and intra-class relation, β = γ = 2 and τ = 4, each times τ²
    "dist": f"32*pearson({_P4}) + 32*pearson(transpose({_P4}))",
    # Shu et al. (CWD), ICCV 2021: KL over the space of each channel, mean over channels, τ = 4; weight 50 for features (3 for logits)
    "cwd": "50*kl(transpose(channel(features[-1])), tau=4)",
    # Liu et al. (SKD), CVPR 2019: pair-wise affinity of positions after 2×2 max-pooling (their code pools to 2×2 positions), weight 1
    "skd_pairwise": "l2(affinity(scale_r2(features[-1])))",
    # Liu et al. (IRG), CVPR 2019: vertices are logits, edges the squared distances divided by the greatest; means where they sum
    "irg_vertex": "l2(logits)",
    "irg_edge": "l2(min_max(pow2(pdist(embedding))))",
    # Zhou et al., ICLR 2021: sample-weighted KL, weight 2.25; their cross-entropy with soft targets has the same gradient
    "wsld": "2.25*focal*kl(logits, tau=4)",
    # Zhao et al. (DKD), CVPR 2022: target class with α = 1 and the others with β = 8, τ = 4, each times τ²
    "dkd": "16*kl(gt_binary(temper(logits, tau=4)), tau=1) + 8*kl(gt_drop(logits), tau=4)",
    # Sun et al., CVPR 2024: KL of z-scored logits, τ = 2, weight 9
    "lskd": "9*kl(zscore_C(logits), tau=2)",
    # Zheng & Yang (WTTM), ICLR 2024, eqs. 7, 22, 23: the teacher's power transform with γ = 0.2 is its temperature 5, the student has
    # none; γ and β = 2 are theirs for ResNet-110 → ResNet-20
    "wttm": "2*power_sum(tau=5)*kl(teacher.temper(logits, tau=5), tau=1)",
    # Jin et al. (MLKD), CVPR 2023, on one view and without their masks: instances at τ = 2…6, class and batch relations at τ = 4 (at all
    # five in their code); weight 0.9, times K = 100 and N = 64, for they divide their sums over K² and N² by K and N
    "mlkd": f"{_KL} + 90*l2(mm(transpose({_P4}))) + 57.6*l2(mm({_P4}))",
    # Chen et al. (ReviewKD), CVPR 2021: hierarchical context loss of maps larger than 4×4, at full size, 4×4, 2×2 and 1×1, halved
    # weights of sum 1
    "hcl": "0.533333*l2(features[-1]) + 0.266667*l2(pool_4(features[-1])) + 0.133333*l2(pool_2(features[-1]))"
    " + 0.0666667*l2(pool_1(features[-1]))",
    # Yang et al. (SRRL), ICLR 2021: feature matching of pooled maps, and the teacher's classifier on the student
    "srrl_feature": "l2(mean_HW(features[-1]))",
    "srrl_regression": "l2(teacher_head)",
    # Heo et al. (OFD), ICCV 2019: margin ReLU on the teacher, partial L2. They sum over C·H·W with 1e-3, ½e-3, ¼e-3 from the last
    # stage down; C·H·W doubles from stage to stage, so that the weight of every mean is 1e-3·256·8·8
    "ofd": " + ".join(f"16.384*partial_l2(teacher.margin(pre_relu[-{i}]))" for i in (1, 2, 3)),
    # Heo et al. (AB), AAAI 2019: the sign of the teacher's pre-activations with margin 1; CRD's benchmark sums likewise with 3e-3, …
    "ab": " + ".join(f"49.152*hinge(pre_relu[-{i}])" for i in (1, 2, 3)),
    # Wang et al. (MiniLM), NeurIPS 2020: attention and value relations of the last layer; tokens stand for the values of one head of
    # 64 channels: XXᵀ/√64 = 8 XXᵀ/64
    "minilm": "kl(attention, tau=1) + kl(temper(gram_HW(tokens), tau=0.125), tau=1)",
    # Dong et al. (DisWOT†), CVPR 2023: KD with the semantic and the relation term, 1/c² and 1/b² as printed (norms not squared); the
    # semantic map is the class gradient, which is what their code computes
    "diswot": "kl(logits, tau=4) + frobenius(norm_all(gram_C(class_gradient(logits, embedding))))"
    " + frobenius(norm_all(mm(features[-1])))",
}  # fmt: skip
