"""Timing of a peer's training steps, which the scripts beside it share."""
import resource, time


def timed_steps(model, optimizer, ids, steps):
    """Trains on `ids` [texts, tokens], every position labelled, and returns what the scripts print: tokens_per_s (median step,
    the first left out), peak_rss_gb, steps_s. The whole step is timed: forward, backward, update."""
    times = []
    for _ in range(steps):
        start = time.time()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.time() - start)
    kept = sorted(times[1:])
    return {"tokens_per_s": round(ids.numel() / kept[len(kept) // 2], 1),
            "peak_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
            "steps_s": [round(t, 3) for t in times]}
