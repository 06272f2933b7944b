#!/usr/bin/env bash
# Measures metajax on one GPU in at most ten minutes, and writes JSON. `gpu.sh` alone, or `gpu.sh few-shot`:
#
#   omniglot-paper/, omniglot-fast/  both schedules in full: wall time and accuracy (result.json)
#   bench/meta_step.json             the benchmark's table beside PyTorch
#   bench/tune.json                  the fastest tasks_per_chunk, mode and form of the convolution
#   bench/transformer.json           memory and time of the transformer case
#
# `gpu.sh evolution`, in at most eight:
#
#   bench/generation.json, lora.json  Gemma's shape with random weights; PyTorch is on the CPU
#   evolve-gemma-shape/               two rounds of 512 tasks x 4 samples on it: seconds of each part
#   evolve-stories/                   a trained Llama writes stories with given words (CHECKPOINT=its folder)
#
# Usage: [PYTHON=python3] [OUT=runs/gpu] experiments/benchmarks/gpu.sh [few-shot|evolution]
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

few_shot() {
  part 150 omniglot-paper experiments.fewshot.omniglot --protocol paper ${DATA:+--data "${DATA}"} --out "${out}/omniglot-paper"
  part 60 omniglot-fast experiments.fewshot.omniglot ${DATA:+--data "${DATA}"} --out "${out}/omniglot-fast"
  part 180 meta-step experiments.benchmarks.meta_step --platform gpu --rounds 5 --compile-repeats 1 --out "${out}/bench"
  part 120 tune experiments.benchmarks.tune --out "${out}/bench"
  part 80 transformer experiments.benchmarks.transformer --out "${out}/bench"
}

evolution() {
  part 90 generation experiments.benchmarks.generation --models "Gemma 3, 268 M" --batch 32 --prompt-length 72 --same 64 --new-tokens 12 --rounds 3 --out "${out}/bench"
  part 90 lora experiments.benchmarks.lora --cells 8x64-answers --tasks 2 --peer-tasks 1 --steps 3 --out "${out}/bench"
  part 150 evolve-gemma-shape experiments.evolution.pretrained --random gemma3-270m --verifier vote --agreement 0.25 --proposer program --gate none --rounds 2 --round-steps 24 --rows 8 --micro-batch 8 --outside-prompts 64 --control no --out "${out}/evolve-gemma-shape"
  [[ -z "${CHECKPOINT:-}" ]] || part 150 evolve-stories experiments.evolution.stories --checkpoint "${CHECKPOINT}" --out "${out}/evolve-stories"
}

case "${1:-few-shot}" in
  few-shot) few_shot ;;
  evolution) evolution ;;
  *)
    echo "gpu.sh: few-shot or evolution, not $1" >&2
    exit 2
    ;;
esac
exit "${status}"
