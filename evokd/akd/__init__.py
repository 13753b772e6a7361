"""Whether architectural knowledge exists in one's own pair: the experiments of AKD ("Search to Distill", CVPR 2020), with intervals."""
