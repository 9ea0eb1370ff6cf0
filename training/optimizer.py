"""Muon, for the demo, whose small networks start at random and have minutes; published weights train by plain AdamW.

Jordan et al. 2024, kellerjordan.github.io/posts/muon: a matrix moves by its momentum, orthogonalised, so that every
direction of it learns at one pace. Without that, and without batch normalisation, a Swin that starts at random spends
thousands of steps on the one direction in which all chest X-rays are alike: the gray of the whole picture.
"""

import torch


def orthogonalised(matrices, steps=5):
    """The nearest semi-orthogonal matrices, roughly: (…, rows, columns) → the same; singular values come near 1.

    Newton–Schulz iteration with the published quintic, x ← a x + (b x xᵀ + c (x xᵀ)²) x.
    """
    x = matrices / (torch.linalg.matrix_norm(matrices, keepdim=True) + 1e-7)
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.mT                 # the products x xᵀ are then the smaller ones
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x if wide else x.mT


class Muon(torch.optim.AdamW):
    """Groups with "muon": True move by Nesterov momentum, orthogonalised; all others are AdamW's.

    Muon's parameters have two and more dimensions and are matrices of the first against the rest.
    """

    def __init__(self, groups, lr, momentum=0.95, fused=None):
        super().__init__([{"muon": False, **group} for group in groups], lr=lr, fused=fused)
        self.momentum = momentum

    @torch.no_grad()
    def step(self):
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["muon"]]
        try:
            super().step()
        finally:
            self.param_groups = groups
        for group in groups:
            if group["muon"]:
                self.move([p for p in group["params"] if p.grad is not None], group["lr"], group["weight_decay"])

    def move(self, parameters, lr, weight_decay):
        """One step of Muon. Matrices of one shape are orthogonalised together, not in a call each."""
        shapes = {}
        for p in parameters:
            momentum = self.state[p].setdefault("momentum", torch.zeros_like(p)).mul_(self.momentum).add_(p.grad)
            ahead = p.grad.add(momentum, alpha=self.momentum).flatten(1)
            shapes.setdefault(ahead.shape, []).append((p, ahead))

        for (rows, columns), members in shapes.items():
            directions = orthogonalised(torch.stack([ahead for _, ahead in members]))
            for (p, _), direction in zip(members, directions):
                p.mul_(1 - lr * weight_decay)
                p.add_(direction.view_as(p), alpha=-lr * max(1, rows / columns) ** 0.5)


# How fast a group moves, in units of the learning rate, where networks start at random (the demo's)
MUON_PACE = 6.0            # a matrix that moves by Muon
TEXT_PACE = 0.1            # stage 1's text encoder, which has learned before (training/pretraining.py)
MOMENTUM = 0.9             # Muon's, where a run has hundreds of steps; 0.95, as published, is for thousands


def optimizer_for(parameters, lr, weight_decay, muon=False):
    """AdamW on {name: parameter}; weight decay on what has two dimensions or more, so not on biases, norms and τ.

    These are the matrices, and with them tables (embeddings, Swin's relative position bias) and the learnable queries.
    For networks that start at random (the demo's), `muon` moves the matrices of all but stage 1's text side by Muon,
    and no tables. The learning rate of a group is "pace" times the common one, so that one schedule serves all.
    """
    groups = {}
    for name, p in parameters.items():
        matrix, text = p.ndim > 1, name.startswith(("bert.", "text_projection."))
        by_muon = (muon and matrix and not text and "relative_position" not in name
                   and not name.endswith((".queries", "embed_tokens.weight", "lm_head.weight")))
        pace = MUON_PACE if by_muon else TEXT_PACE if muon and text else 1.0
        groups.setdefault((matrix, by_muon, pace), []).append(p)

    groups = [{"params": members, "weight_decay": weight_decay if matrix else 0.0, "muon": by_muon, "pace": pace}
              for (matrix, by_muon, pace), members in groups.items()]
    fused = all(p.device.type == "cpu" for p in parameters.values()) or None       # one call, not ten per tensor
    return Muon(groups, lr, MOMENTUM, fused) if muon else torch.optim.AdamW(groups, lr=lr, fused=fused)


def set_learning_rate(optimizer, lr):
    """The common learning rate; every group moves at its own pace."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["pace"]
