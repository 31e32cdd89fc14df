"""One sentence under each plot: how to read it, and what bad looks like. By the figure's key."""

CAPTIONS = {
    "accuracy": (
        "Share of right answers on held-out questions (bars: one standard error; dashed: the teacher): blue "
        "should rise towards the dashed lines; bad is a blue line that falls, or an orange one, the student's "
        "privileged view, that falls so far that a live self-target teaches errors."
    ),
    "training": (
        "How often the student's own completions of training prompts are right: all should rise and privileged "
        "stay above plain; bad is privileged at or below plain, for then the self-target has nothing to teach."
    ),
    "loss": (
        "Mean divergence of each regime's tokens before weighting, in nats (dotted: the loss as it is minimised): "
        "lines should fall or stay flat; bad is one that climbs while the others fall, or jumps."
    ),
    "shares": (
        "Which share of the sampled tokens takes which route (warm is taught by the teacher, cool by the "
        "privileged student, dark has a high gap): bad is one regime that swallows all, for routing then "
        "decides nothing."
    ),
    "gap": (
        "Share of tokens by |log q_T - log q_S|, high gaps right of that step's dashed threshold: most tokens lie "
        "left of it, with a tail to the right; bad is everything in the leftmost bin, for teacher and self-target "
        "are then the same."
    ),
    "density": (
        "Tokens by the probability that the teacher (q_T) and the privileged student (q_S) give them, darker is "
        "more (log scale), with the regimes' borders: mass should gather top right as training goes on; bad is a "
        "ridge along one axis, where one of the two knows nothing."
    ),
    "entropy": (
        "The student's mean entropy on trained tokens and the length of its completions: both may settle; bad is "
        "entropy under 10% or length under 50% of its first steps (marked where it happens), or most completions "
        "cut at the limit."
    ),
    "optimizer": (
        "The gradient norm before clipping, and the schedule: the norm should stay within a factor of ten; bad are "
        "spikes that come more and more often."
    ),
    "time": (
        "Where the seconds of each step go: the stack should be level; bad is a phase that grows (rollout: "
        "completions get longer; data: rows are slow to make)."
    ),
    "memory": (
        "GiB that the main process holds, and the peak on its GPU: level after a few steps; bad is a line that "
        "keeps climbing."
    ),
    "curve": (
        "Share of right answers on held-out questions: higher is better; bad is a curve that turns down."
    ),
    "curve-rollout-accuracy": (
        "Right answers among the sampled completions: higher is better, and a sampled score lies below the greedy one; "
        "bad is a run that stays at its start."
    ),
    "curve-probe-plain_accuracy": (
        "Greedy answers to training prompts: bad is a rise here without one on held-out questions."
    ),
    "curve-probe-privileged_accuracy": (
        "The same with privilege: bad is a fall, for a live self-target then teaches errors."
    ),
    "curve-loss": (
        "What each run minimises: comparable within one method only; bad is a line that rises or jumps."
    ),
    "curve-divergence-all": (
        "Mean divergence before weighting: comparable between runs with the same routes; bad is a rise."
    ),
    "curve-entropy-student": (
        "How undecided the student is: bad is a run that drops to nothing while the others do not."
    ),
    "curve-rollout-length": (
        "Tokens of a completion: bad is a run whose answers become much shorter or longer than the others'."
    ),
    "curve-share-ht": (
        "Share of tokens that get deep teaching: bad is none at all, for the teacher then adds nothing."
    ),
    "curve-threshold-gap": (
        "What counts as a high gap, in nats: bad is about 0, for teacher and self-target are then the same."
    ),
    "curve-optim-grad_norm": (
        "Before clipping: bad are spikes that one run has and the others do not."
    ),
    "curve-time-step_total": (
        "Cost of a step: compare runs on the same machine only; bad is a climb."
    ),
}
