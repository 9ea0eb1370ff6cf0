"""The optimisers: AdamW for published weights; Muon for the demo, whose small networks start with random weights and
train for minutes only.

Muon is by Jordan et al. 2024, kellerjordan.github.io/posts/muon: a matrix is updated by its orthogonalised momentum, so
that all its directions are learnt at the same rate. Without Muon (and without batch normalisation) a Swin with random
weights spends thousands of steps on the one direction in which all chest X-rays are alike: the mean gray of a picture.
"""

import torch


def orthogonalised(matrices, steps=5):
    """(…, rows, columns) → approximately the nearest semi-orthogonal matrices, all singular values near 1.

    Newton–Schulz iteration with the published quintic, x ← a x + (b x xᵀ + c (x xᵀ)²) x.
    """
    x = matrices / (torch.linalg.matrix_norm(matrices, keepdim=True) + 1e-7)
    wide = x.shape[-2] <= x.shape[-1]
    x = x if wide else x.mT                 # makes x xᵀ the smaller of both products
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x if wide else x.mT


class Muon(torch.optim.AdamW):
    """AdamW, but parameter groups with "muon": True are updated by orthogonalised Nesterov momentum.

    Muon's parameters have two or more dimensions; all dimensions but the first are flattened to make a matrix.
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
        """One step of Muon. Matrices of the same shape are orthogonalised in one batched call."""
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


# Learning rate of a group over the common learning rate, for the demo's networks with random weights
MUON_PACE = 6.0            # matrices that Muon updates
TEXT_PACE = 0.1            # stage 1's text encoder, which is pre-trained (training/pretraining.py)
MOMENTUM = 0.9             # of Muon: a run of the demo has hundreds of steps, and the published 0.95 suits thousands


def optimizer_for(parameters, lr, weight_decay, muon=False):
    """AdamW on {name: parameter}, or, with `muon`, `Muon`.

    Weight decay applies to parameters with two dimensions or more: matrices, tables (embeddings, Swin's relative
    position bias) and the learnable queries; not to biases, norms and τ. With `muon`, meant for the demo's networks
    with random weights, Muon updates the matrices, except those of stage 1's text side; tables and queries stay with
    AdamW. A group's learning rate is its "pace" times the common one, so that one schedule serves all groups.
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
    """Sets every group's learning rate: the common `lr` times the group's pace."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["pace"]
