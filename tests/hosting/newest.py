"""Models of the newest XGBoost, as they are for every reader: `python newest.py DIRECTORY ROWS` under `.venv-py312`.

For each kind a directory with `model/xgboost-model`, and one line of JSON with what this XGBoost says of the rows,
which are CSV.
"""

import json
import sys
from pathlib import Path

import numpy as np
import xgboost as xgb

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.support import boosters
from trainbox.xgboost.readers import for_every_reader

#: What 3.4 writes otherwise than 3.2, and what XGBoost before 2.0 asks for more of.
KINDS = ("binary:logistic", "dart", "dart of classes", "softprob", "ndcg", "reg:squaredlogerror", "linear")
rows = xgb.DMatrix(np.genfromtxt(sys.argv[2], delimiter=",", dtype=np.float32), nthread=1)
told = {}
for kind in KINDS:
    given, traits = boosters.KINDS[kind]
    params = {"max_depth": 3, "nthread": 1, **given} | ({"base_score": 0.5} if "classes" in traits else {})
    # As the training script asks for it here.
    params |= {"booster": "gbtree"} if kind.startswith("dart") else {}
    booster = xgb.train(params, boosters.draw(traits), 6)
    model = Path(sys.argv[1], kind.replace(" ", "-"), "model")
    model.mkdir(parents=True)
    (model / "xgboost-model").write_bytes(for_every_reader(bytes(booster.save_raw("ubj"))))
    told[str(model)] = booster.predict(rows).tolist()
print(json.dumps(told))
