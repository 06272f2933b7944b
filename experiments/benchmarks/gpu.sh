#!/usr/bin/env bash
# Measures metajax on one GPU in at most ten minutes, and writes JSON:
#
#   omniglot-paper/, omniglot-fast/  both schedules in full: wall time and accuracy (result.json)
#   bench/meta_step.json             the benchmark's table beside PyTorch
#   bench/tune.json                  the fastest tasks_per_chunk, mode and form of the convolution
#   bench/transformer.json           memory and time of the transformer case
#
# Usage: [PYTHON=python3] [OUT=runs/gpu] experiments/benchmarks/gpu.sh
#
# Needs JAX with CUDA, metajax's dependencies and, for the peers, the extra "bench". Omniglot comes
# from the cache (METAJAX_CACHE), DATA=<folder with its zips> or tensorflow-datasets. A part that
# takes too long is cut off; the parts that write as they go keep what they have.
set -uo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
python="${PYTHON:-python3}"
out="${OUT:-runs/gpu}"
mkdir -p "${out}"
export XLA_PYTHON_CLIENT_PREALLOCATE=false # PyTorch needs memory beside JAX

"${python}" -c 'import jax; assert jax.default_backend() == "gpu", jax.devices(); print(jax.devices())' || {
  echo "gpu.sh: JAX finds no GPU" >&2
  exit 1
}

status=0
part() { # seconds, log, module and arguments
  local limit="$1" log="$2"
  shift 2
  local start=${SECONDS}
  echo "== $* (at most ${limit} s)"
  timeout "${limit}" "${python}" -m "$@" >"${out}/${log}.log" 2>&1 || {
    echo "   failed or cut off; the end of ${log}.log:"
    tail -n 5 "${out}/${log}.log"
    status=1
  }
  echo "   $((SECONDS - start)) s"
}

part 150 omniglot-paper experiments.fewshot.omniglot --protocol paper ${DATA:+--data "${DATA}"} --out "${out}/omniglot-paper"
part 60 omniglot-fast experiments.fewshot.omniglot ${DATA:+--data "${DATA}"} --out "${out}/omniglot-fast"
part 180 meta-step experiments.benchmarks.meta_step --platform gpu --rounds 5 --compile-repeats 1 --out "${out}/bench"
part 120 tune experiments.benchmarks.tune --out "${out}/bench"
part 80 transformer experiments.benchmarks.transformer --out "${out}/bench"
exit "${status}"
