"""Muon, for the demo, whose small networks start at random and have minutes; published weights train by plain AdamW.

Jordan et al. 2024, kellerjordan.github.io/posts/muon: a matrix moves by its momentum, orthogonalised, so that every
direction of it learns at one pace. Without that, and without batch normalisation, a Swin that starts at random spends
thousands of steps on the one direction in which all chest X-rays are alike: the gray of the whole picture.
"""

import torch


def orthogonalised(matrix, steps=5):
    """The nearest semi-orthogonal matrix, roughly: Newton–Schulz with the published quintic; singular values near 1."""
    x = matrix / (matrix.norm() + 1e-7)
    wide = x.shape[0] <= x.shape[1]
    x = x if wide else x.T
    for _ in range(steps):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x if wide else x.T


class Muon(torch.optim.AdamW):
    """Groups with "muon": True move by Nesterov momentum, orthogonalised; all others are AdamW's.

    Muon's parameters have two and more dimensions and are matrices of the first against the rest. `scale` is their
    learning rate in units of the group's "lr", so that one schedule serves both.
    """

    def __init__(self, groups, lr, momentum=0.95, scale=6.0):
        super().__init__([{"muon": False, **group} for group in groups], lr=lr)
        self.momentum, self.scale = momentum, scale

    @torch.no_grad()
    def step(self):
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["muon"]]
        try:
            super().step()
        finally:
            self.param_groups = groups
        for group in groups:
            for p in group["params"] if group["muon"] else ():
                if p.grad is not None:
                    self.move(p, group["lr"] * self.scale, group["weight_decay"])

    def move(self, p, lr, weight_decay):
        momentum = self.state[p].setdefault("momentum", torch.zeros_like(p)).mul_(self.momentum).add_(p.grad)
        ahead = p.grad.add(momentum, alpha=self.momentum).flatten(1)
        p.mul_(1 - lr * weight_decay)
        p.add_(orthogonalised(ahead).view_as(p), alpha=-lr * max(1, ahead.shape[0] / ahead.shape[1]) ** 0.5)


def optimizer_for(parameters, lr, weight_decay, muon=False):
    """AdamW on {name: parameter}; weight decay on matrices only, so not on biases, norms and the temperature.

    For networks that start at random (the demo's), `muon` moves the matrices of all but stage 1's text side by Muon,
    and no tables.
    """
    groups = {}
    for name, p in parameters.items():
        matrix = p.ndim > 1
        by_muon = (muon and matrix and "relative_position" not in name
                   and not name.endswith((".queries", "embed_tokens.weight", "lm_head.weight"))
                   and not name.startswith(("bert.", "text_projection.")))
        groups.setdefault((matrix, by_muon), []).append(p)
    groups = [{"params": members, "weight_decay": weight_decay if matrix else 0.0, "muon": by_muon}
              for (matrix, by_muon), members in groups.items()]
    return Muon(groups, lr=lr) if muon else torch.optim.AdamW(groups, lr=lr)
