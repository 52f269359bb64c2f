"""How often `compare` claims a difference that is not there, and how often it finds one that is: by simulation.

python benchmarks/error_rate.py [TRIALS]
"""

import sys

from lmxlab.experiments.error_rate import error_table

EFFECTS = (0.0, 1.0, 2.0, 3.0)


def main() -> None:
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    rates = {(r.noise, r.n_designs, r.n_seeds, r.effect_sigma): r for r in error_table(EFFECTS, n_trials=trials)}
    print("| noise | designs | seeds | false claims | power at 1 sigma | 2 sigma | 3 sigma |")
    print("|---|---|---|---|---|---|---|")
    for noise, n_designs, n_seeds in dict.fromkeys(key[:3] for key in rates):
        false, *found = (rates[noise, n_designs, n_seeds, effect] for effect in EFFECTS)
        power = " | ".join(f"{rate.found:.0%}" for rate in found)
        print(f"| {noise} | {n_designs} | {n_seeds} | {false.false_claims:.1%} | {power} |")


if __name__ == "__main__":
    main()
