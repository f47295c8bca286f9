"""Models in the binary format, and pickled: `python old_models.py DIRECTORY` under `.venv-hosting-1.7`.

For each kind `KIND.model` and `KIND.pkl` with what this XGBoost says of `rows.npy`, which it writes, in `KIND.npy`.
"""

import pickle
import sys
from pathlib import Path

import numpy as np
import xgboost as xgb

random = np.random.default_rng(1)
features = random.normal(size=(200, 5)).astype(np.float32)
score = features[:, 0] + np.sin(features[:, 1])
rows = np.random.default_rng(2).normal(size=(60, 5)).astype(np.float32)
rows[::6, 0] = np.nan
LABELS = {
    **dict.fromkeys(("binary:logistic", "binary:logitraw", "binary:hinge", "rank:pairwise"), score > 0),
    **dict.fromkeys(("count:poisson", "reg:gamma", "reg:tweedie", "survival:cox", "survival:aft"), np.exp(score)),
    **dict.fromkeys(("multi:softmax", "multi:softprob"), np.digitize(score, [-0.5, 0.5])),
    "reg:squarederror": score,
}
directory = Path(sys.argv[1])
np.save(directory / "rows.npy", rows)
for objective, labels in LABELS.items():
    for booster in ("gbtree", "dart", "gblinear"):
        matrix = xgb.DMatrix(features, label=np.asarray(labels, np.float64), nthread=1)
        if objective.startswith("rank:"):
            matrix.set_group([20] * 10)
        if objective == "survival:aft":
            matrix.set_float_info("label_lower_bound", labels)
            matrix.set_float_info("label_upper_bound", labels + 1)
        params = {"objective": objective, "booster": booster, "rate_drop": 0.5, "max_depth": 3, "base_score": 0.4}
        # The exact method prunes: some nodes of its trees are deleted.
        params |= {"gamma": 0.3, "tree_method": "exact", "nthread": 1, "verbosity": 0}
        if objective.startswith("multi:"):
            params["num_class"] = 3
        model = xgb.train(params, matrix, 7)
        name = f"{objective.replace(':', '-')}-{booster}"
        model.save_model(directory / f"{name}.model")
        (directory / f"{name}.pkl").write_bytes(pickle.dumps(model))
        np.save(directory / f"{name}.npy", model.predict(xgb.DMatrix(rows, nthread=1)))
