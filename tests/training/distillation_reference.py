"""Divergences of torch and of TRL's GKD, in a process of their own: `python distillation_reference.py IN.npz OUT.npz`.

IN has `student` and `teacher` logits (N, V); OUT gets, by case, the loss and its gradient for the student's logits.
"""

import sys

import numpy as np

TEMPERATURES = (1.0, 4.0)
BETAS = {"forward": 0.0, "reverse": 1.0, "jsd 0.5": 0.5, "jsd 0.1": 0.1}

if __name__ == "__main__":
    import torch
    from torch.nn.functional import kl_div, log_softmax
    from trl.experimental.gkd import GKDTrainer

    given = np.load(sys.argv[1])
    teacher = torch.tensor(given["teacher"])
    found = {}

    def keep(name: str, loss: torch.Tensor, student: torch.Tensor) -> None:
        (gradient,) = torch.autograd.grad(loss, student)
        found[name], found[f"gradient {name}"] = loss.detach().numpy(), gradient.numpy()

    for temperature in TEMPERATURES:
        student = torch.tensor(given["student"], requires_grad=True)
        p, q = (log_softmax(z / temperature, dim=-1) for z in (teacher, student))
        keep(f"kl_div {temperature}", kl_div(q, p, reduction="batchmean", log_target=True), student)
        for name, beta in BETAS.items():
            loss = GKDTrainer.generalized_jsd_loss(student, teacher, beta=beta, temperature=temperature)
            keep(f"{name} {temperature}", loss, student)
    np.savez(sys.argv[2], **found)
