"""Slow, obvious versions of the maths. Nothing here imports dopd_vlm.

Divergences and routing are plain Python floats over lists; the routed loss is dense float64 torch
in probability space, so that autograd gives the gradients to compare with.
"""

import math

import torch

LH, LL, HT, HS = 0, 1, 2, 3


def kl(p, q):
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def forward_kl(student, target):
    return kl(target, student)


def reverse_kl(student, target):
    return kl(student, target)


def jsd(student, target, beta=0.5):
    if beta == 0:
        return kl(target, student)
    if beta == 1:
        return kl(student, target)
    mixture = [(1 - beta) * s + beta * t for s, t in zip(student, target, strict=True)]
    return beta * kl(target, mixture) + (1 - beta) * kl(student, mixture)


def top_k(values, k):
    """Ids of the k greatest, ties by the lowest id."""
    return sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]


def on_support(divergence, student, target, ids, tail):
    s, t = [student[i] for i in ids], [target[i] for i in ids]
    if tail == "bucket":
        s, t = [*s, 1 - math.fsum(s)], [*t, 1 - math.fsum(t)]
    if tail == "renormalise":
        s, t = [x / math.fsum(s) for x in s], [x / math.fsum(t) for x in t]
    return divergence(s, t)


def top_k_divergence(divergence, student, target, k, support="target", tail="bucket"):
    if k >= len(student):
        return divergence(student, target)
    ids = top_k(target if support == "target" else student, k)
    return on_support(divergence, student, target, ids, tail)


def quantile(values, share):
    ordered = sorted(values)
    position = round(share * (len(ordered) - 1), 9)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


def thresholds(teacher_logp, privileged_logp, trim=0.05):
    """(gap, q_self, q_teacher) of flat lists of valid tokens."""
    gaps = [abs(t - s) for t, s in zip(teacher_logp, privileged_logp, strict=True)]
    limit = quantile(gaps, 1 - trim)
    keep = [i for i, gap in enumerate(gaps) if gap <= limit]

    def mean(values):
        return math.fsum(values[i] for i in keep) / len(keep)

    q_self, q_teacher = ([math.exp(x) for x in xs] for xs in (privileged_logp, teacher_logp))
    return mean(gaps), mean(q_self), mean(q_teacher)


def regime(teacher_logp, privileged_logp, limits):
    """Regime of one token; limits = (gap, q_self, q_teacher)."""
    gap, q_self, q_teacher = limits
    t, s = math.exp(teacher_logp), math.exp(privileged_logp)
    if abs(teacher_logp - privileged_logp) < gap:
        return LH if t + s >= q_teacher + q_self else LL
    return HT if t >= s else HS


# Dense float64 torch from here on.


def dense_kl(p, q):
    return (p * (p.log() - q.log())).sum(-1)


def dense_divergence(name, student, target, beta=0.5):
    if name == "forward_kl":
        return dense_kl(target, student)
    if name == "reverse_kl":
        return dense_kl(student, target)
    if beta in (0, 1):
        return dense_divergence("reverse_kl" if beta else "forward_kl", student, target)
    mixture = (1 - beta) * student + beta * target
    return beta * dense_kl(target, mixture) + (1 - beta) * dense_kl(student, mixture)


def dense_token(route, student, target, token):
    """Divergence of one token. student, target: [V] probabilities; route: any object with
    divergence, top_k, beta, support and tail."""
    if route.support == "sampled":
        return sampled_token(route, student[token], target[token])
    if route.top_k is None or route.top_k >= len(student):
        return dense_divergence(route.divergence, student, target, route.beta)
    chooser = target if route.support == "target" else student
    ids = top_k(chooser.tolist(), route.top_k)
    s, t = student[ids], target[ids]
    if route.tail == "bucket":
        s, t = torch.cat([s, 1 - s.sum()[None]]), torch.cat([t, 1 - t.sum()[None]])
    if route.tail == "renormalise":
        s, t = s / s.sum(), t / t.sum()
    return dense_divergence(route.divergence, s, t, route.beta)


def sampled_token(route, p, q):
    """Value of the one-sample estimate, with the score-function gradient."""
    beta = {"forward_kl": 0, "reverse_kl": 1}.get(route.divergence, route.beta)
    fixed = p.detach()
    if beta == 0:
        value, slope = q / fixed * (q / fixed).log(), -q / fixed
    elif beta == 1:
        value, slope = (fixed / q).log(), (fixed / q).log()
    else:
        mixture = (1 - beta) * fixed + beta * q
        slope = (1 - beta) * (fixed / mixture).log()
        value = beta * q / fixed * (q / mixture).log() + slope
    return value + slope * (p.log() - p.log().detach())


def dense_probs(hidden, weight, bias=None, scale=1.0, softcap=None, temperature=1.0, width=None):
    logits = hidden @ weight.T
    if bias is not None:
        logits = logits + bias
    logits = logits * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return (logits[..., :width] / temperature).softmax(-1)


def dense_routed_loss(student, targets, scored, ids, mask, method, limits=None, count=None):
    """(loss, per token [B][T], regimes [B][T]).

    student: [B, T, V] probabilities at the loss temperature; targets: {"teacher": [B, T, V],
    "self_target": [B, T, V]}, at the loss temperature; scored: the same at temperature 1.
    """
    places = [(b, t) for b in range(len(mask)) for t in range(mask.shape[1]) if mask[b, t]]
    logp = {
        name: {at: probs[(*at, ids[at])].log().item() for at in places}
        for name, probs in scored.items()
    }
    if limits is None and places:
        teacher, privileged = (list(logp[name].values()) for name in ("teacher", "self_target"))
        limits = thresholds(teacher, privileged)
    loss = sum(probs.sum() for probs in [student]) * 0
    values = torch.zeros(mask.shape, dtype=torch.float64)
    regimes = torch.full(mask.shape, -1)
    for at in places:
        regimes[at] = regime(logp["teacher"][at], logp["self_target"][at], limits)
        route = method.routes[int(regimes[at])]
        if route.weight == 0:
            continue
        value = dense_token(route, student[at], targets[route.target][at].detach(), ids[at])
        values[at] = value.detach()
        loss = loss + route.weight * value / (int(mask[at[0]].sum()) * (count or len(mask)))
    return loss, values, regimes


def sampled_probs(
    logits, prompt_ids, completion_ids, *, temperature, top_p, top_k, min_p, presence, frequency, repetition
):  # fmt: skip
    """The distribution of the next token: penalties, temperature, min_p, top_k, top_p, in this order."""
    scores = list(logits)
    for token in range(len(scores)):
        if token in prompt_ids or token in completion_ids:
            scores[token] = (
                scores[token] / repetition if scores[token] > 0 else scores[token] * repetition
            )
        scores[token] -= frequency * completion_ids.count(token)
        scores[token] -= presence * (token in completion_ids)
        scores[token] /= temperature
    probs = _softmax(scores)
    probs = [p if p >= min_p * max(probs) else 0.0 for p in probs]
    order = sorted(range(len(probs)), key=lambda token: -probs[token])
    probs = [p if token in order[:top_k] else 0.0 for token, p in enumerate(probs)]
    total, reached, nucleus = math.fsum(probs), 0.0, set()
    for token in order:
        if reached < top_p * total:
            nucleus.add(token)
        reached += probs[token]
    probs = [p if token in nucleus else 0.0 for token, p in enumerate(probs)]
    return [p / math.fsum(probs) for p in probs]


def drawn_token(probs, noise):
    """The first token at which the cumulated probability exceeds the uniform number."""
    reached = 0.0
    for token, prob in enumerate(probs):
        reached += prob
        if reached > noise:
            return token
    raise AssertionError("probabilities do not reach 1")


def _softmax(scores):
    top = max(scores)
    weights = [math.exp(score - top) for score in scores]
    return [weight / math.fsum(weights) for weight in weights]
