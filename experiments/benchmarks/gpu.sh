#!/usr/bin/env bash
# Measures metajax on one GPU, part by part in order of worth, within LIMIT seconds. The same command goes on where it was
# stopped: a part that is done is passed over, and a training goes on from its last checkpoint.
#
#   omniglot-paper/       the paper's 60,000 meta-steps: wall time and accuracy (result.json)
#   bench/meta_step.json  the benchmark's table beside PyTorch
#   omniglot-fast/        our schedule, three seeds as one program
#   omniglot-table/       the table of ten learners, cell by cell
#   cifar-table/          CIFAR-FS and FC100 with ResNet-12, cell by cell
#   bench/tune.json       the fastest tasks_per_chunk, mode and form of the convolution
#   bench/prototypical.json, transformer.json
#   bench/generation.json, lora.json  Gemma's shape with random weights; PyTorch is on the CPU
#   evolve-gemma-shape/   two rounds of 512 tasks x 4 samples on it: seconds of each part
#   evolve-stories/       a trained Llama writes stories with given words (CHECKPOINT=its folder)
#
# Usage: [PYTHON=python3] [OUT=runs/gpu] [LIMIT=480] experiments/benchmarks/gpu.sh [PART ...]
#
# Needs JAX with CUDA, metajax's dependencies and, for the peers, the extra "bench". Omniglot and CIFAR-100 come from the
# cache (METAJAX_CACHE), DATA=<folder with Omniglot's zips> or tensorflow-datasets. TINY=1 runs every part in small on a CPU.
set -uo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit 1
python="${PYTHON:-python3}"
out="${OUT:-runs/gpu}"
limit="${LIMIT:-480}"
tiny="${TINY:-}"
wanted=" $* "
platform=gpu
mkdir -p "${out}/done"
export XLA_PYTHON_CLIENT_PREALLOCATE=false # PyTorch needs memory beside JAX

if [[ -n "${tiny}" ]]; then
  platform=cpu
else
  "${python}" -c 'import jax; assert jax.default_backend() == "gpu", jax.devices(); print(jax.devices())' || {
    echo "gpu.sh: JAX finds no GPU" >&2
    exit 1
  }
fi

status=0
part() { # name, most seconds, module and arguments; behind -- what makes it small
  local name="$1" most="$2" start=${SECONDS} small=() words=()
  shift 2
  while (($#)) && [[ "$1" != "--" ]]; do
    words+=("$1")
    shift
  done
  [[ -z "${tiny}" ]] || small=("${@:2}")
  [[ "${wanted}" == "  " || "${wanted}" == *" ${name} "* ]] || return 0
  if [[ -e "${out}/done/${name}" ]]; then
    echo "== ${name}: done before"
    return 0
  fi
  if ((limit - SECONDS < 20)); then
    echo "== ${name}: no time left; the same command goes on"
    status=1
    return 0
  fi
  ((most <= limit - SECONDS)) || most=$((limit - SECONDS))
  [[ ! -e "${out}/${name}/config.json" ]] || words+=(--resume)
  echo "== ${name} (at most ${most} s): ${words[*]} ${small[*]-}"
  if timeout -k 15 "${most}" "${python}" -m "${words[@]}" "${small[@]}" >"${out}/${name}.log" 2>&1; then
    touch "${out}/done/${name}"
  else
    echo "   failed or cut off; the end of ${name}.log:"
    tail -n 5 "${out}/${name}.log"
    status=1
  fi
  echo "   $((SECONDS - start)) s"
}

few="experiments.fewshot"
bench="experiments.benchmarks"
data=(${DATA:+--data "${DATA}"})
short=(--steps 4 --test-episodes 4)

part omniglot-paper 120 "${few}.omniglot" --protocol paper "${data[@]}" --out "${out}/omniglot-paper" -- "${short[@]}"
part meta-step 120 "${bench}.meta_step" --platform "${platform}" --rounds 5 --compile-repeats 1 --out "${out}/bench" \
  -- --cells "5-way 1-shot" --rounds 2 --of-the-mean --compile-steps 1
part omniglot-fast 90 "${few}.omniglot" "${data[@]}" --seeds 3 --out "${out}/omniglot-fast" -- "${short[@]}"
part omniglot-table 120 "${few}.omniglot.table" "${data[@]}" --out "${out}/omniglot-table" \
  -- "${short[@]}" --methods protonet --cells 5w1s
part cifar-table 120 "${few}.cifar.table" --body resnet12 --methods prototypical,metaoptnet,linear-probe \
  --out "${out}/cifar-table" -- "${short[@]}" --methods prototypical --cells cifar-fs-1shot --body conv4
part tune 100 "${bench}.tune" --out "${out}/bench" -- --cells "5-way 1-shot" --chunks 1 --timed 1
part prototypical 90 "${bench}.prototypical" --platform "${platform}" --out "${out}/bench" \
  -- --n-way 5 --features 8 --rounds 2 --turn-seconds 0.1
part transformer 80 "${bench}.transformer" --out "${out}/bench" \
  -- --inner-steps 2 --layers 1 --width 32 --heads 2 --length 16 --repeats 1
part generation 90 "${bench}.generation" --models "Gemma 3, 268 M" --batch 32 --prompt-length 72 --same 64 --new-tokens 12 \
  --rounds 3 --out "${out}/bench" -- --models "Llama, 1 M" --batch 2 --rounds 1
part lora 90 "${bench}.lora" --cells 8x64-answers --tasks 2 --peer-tasks 1 --steps 3 --out "${out}/bench" \
  -- --cells 2x16 --steps 1 --rounds 1
part evolve-gemma-shape 120 experiments.evolution.pretrained --random gemma3-270m --verifier vote --agreement 0.25 \
  --proposer program --gate none --rounds 2 --round-steps 24 --rows 8 --micro-batch 8 --outside-prompts 64 --control no \
  --out "${out}/evolve-gemma-shape" -- --random tiny --rounds 1 --round-steps 2 --proposals 16 --held-out 16 --test-prompts 4
[[ -z "${CHECKPOINT:-}" ]] || part evolve-stories 120 experiments.evolution.stories --checkpoint "${CHECKPOINT}" --rounds 12 \
  --out "${out}/evolve-stories" -- --rounds 1 --round-steps 2 --proposals 4 --samples 2 --batch 6 --stories 8 --imitated 8 \
  --test-prompts 8 --validation 8 --held-out 8
exit "${status}"
