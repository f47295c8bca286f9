"""`python -m trainbox.elastic.fresh SCRIPT …`: a rank in an interpreter of its own, with nothing imported before."""

import sys

from trainbox.elastic.rank_program import run

if __name__ == "__main__":
    sys.exit(run({}, sys.argv[1:]))
