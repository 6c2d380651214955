#!/usr/bin/env bash
# Everything that only a machine with a CUDA GPU can show.  Needs torch with CUDA, pytest, a compiler
# and nvcc; no network.  A stage that fails is recorded, and the next one runs.
#
#   benchmarks/gpu_check.sh OUT [WHEEL]
#
# OUT gets a log and a record a stage, the benchmark results as JSON and summary.json; WHEEL is a
# wheel built elsewhere (with a CPU-only torch, another Python), to be loaded here unchanged; without
# it, the one under dist/ is taken, if there is one.  The status is 0 if every stage succeeded.
#
# A call lasts at most GPU_CHECK_SECONDS (570: machines may end a command after ten minutes).  Stages
# that did not finish are left for the next call with the same OUT, which skips the finished ones;
# such a call ends with status 75.  GPU_CHECK_DEVICE=cpu goes through the stages without a GPU.
set -uo pipefail

if [[ $# -lt 1 || $# -gt 2 ]]; then
  echo "usage: ${BASH_SOURCE[0]} OUT [WHEEL]" >&2
  exit 2
fi
die() { printf 'gpu_check: %s\n' "$*" >&2 && exit 1; }
wheel=${2:-}
[[ -z $wheel || -f $wheel ]] || die "no wheel $wheel"
wheel=${wheel:+$(realpath "$wheel")}
mkdir -p "$1/stages" || exit
out=$(realpath "$1")
# What a call that was killed had begun holds the lock until it ends.
exec 9>"$out/lock" || exit
flock -n 9 || { echo "another call still works in $out" && exit 75; }
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
if [[ -z $wheel ]]; then
  prebuilt=(dist/pyddfast-*.whl)
  if [[ -f ${prebuilt[0]} ]]; then wheel=$(realpath "${prebuilt[0]}"); else echo "no wheel to load"; fi
fi
readonly call_limit=${GPU_CHECK_SECONDS:-570} stage_limit=540 device=${GPU_CHECK_DEVICE:-cuda}
export PYDDFAST_STRICT=1 # a fallback to the twin would hide a kernel that does not run
export PYTHONUNBUFFERED=1 GPU_CHECK_DEVICE=$device GPU_CHECK_OUT=$out
pending=()
begun=0 # stages of this call

stage() {
  local name=$1 code start=$SECONDS left=$((call_limit - SECONDS)) limit=$stage_limit
  shift
  [[ ! -s $out/stages/$name.json ]] || return 0
  if ((left < 20)); then # too short for anything: a Python with torch starts in ten seconds
    pending+=("$name")
    return 0
  fi
  ((left >= limit)) || limit=$left
  echo "== $name: $*"
  timeout --kill-after=10 "$limit" "$@" >"$out/$name.log" 2>&1
  code=$?
  # It has done a part (75), or was cut off by the end of the call, after less than its own time: it
  # goes on, or starts again, in the next one.  The first of a call has all the time that it can get.
  if ((code == 75 || (code == 124 || code == 137) && limit < stage_limit && begun > 0)); then
    pending+=("$name")
    return 0
  fi
  ((begun += 1))
  ((code == 0)) || tail -n 20 "$out/$name.log"
  # Unrecorded, a failure would pass for a stage that was left out: the disk may be full.
  printf '{"ended": %s, "stage": "%s", "exit": %d, "seconds": %d}\n' \
    "${EPOCHREALTIME/,/.}" "$name" "$code" $((SECONDS - start)) \
    >"$out/stages/$name.tmp" && mv "$out/stages/$name.tmp" "$out/stages/$name.json" ||
    die "$name ended with $code, which $out/stages/$name.json cannot take"
}

# The kernels against the float64 twin, under whatever torch this is.
values='
import os, torch, pyddfast
from pyddfast import ops
device = torch.device(os.environ["GPU_CHECK_DEVICE"])
assert pyddfast.__file__.startswith(os.environ["GPU_CHECK_ROOT"] + "/"), pyddfast.__file__
print(pyddfast.__file__, torch.__version__, torch.cuda.get_device_name() if device.type == "cuda" else "")
generator = torch.Generator().manual_seed(0)
for shape in [(256, 10), (64, 1000), (8, 21841)]:
    s, t = (3 * torch.randn(shape, generator=generator) for _ in range(2))
    results = []
    for student, teacher in ((s.to(device), t.to(device)), (s.double(), t.double())):
        student.requires_grad_()
        loss, score = ops.kd_loss(student, teacher, 4.0, return_score=True)
        loss.backward()
        results.append([x.detach().double().cpu() for x in (loss, score, student.grad)])
    for name, got, want in zip(("loss", "score", "gradient"), *results):
        error = float((got - want).norm() / want.norm())
        print(shape, name, error)
        assert error <= 1e-6, (shape, name, error)
'
case $device in
  cuda) cuda=1 marked=(-m cuda) bench=() ;;
  cpu) cuda=0 marked=(-k "cpu and not simt") bench=(--quick) ;;
  *) echo "GPU_CHECK_DEVICE is cuda or cpu, not $device" >&2 && exit 2 ;;
esac
# Packages that only oracles need may be missing: their files are errors, the others run.
tests=(python3 -m pytest -q -p no:cacheprovider --continue-on-collection-errors "${marked[@]}")
facts='
failed=0
for command in nvidia-smi "nvcc --version" "compute-sanitizer --version" "df -h ." \
  "python3 -m torch.utils.collect_env"; do
  $command || failed=$?
done
exit "$failed"
'
# A tool that refuses the device may end with 0, and without its summary.  Torch keeps memory in large
# blocks, in which an overrun stays unseen: every tensor gets memory of its own.
sanitized='
PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$0" --target-processes all \
  --error-exitcode 3 "$@" && grep -q "SUMMARY: 0 " "$GPU_CHECK_OUT/$0.log"
'
small=(python3 -m pytest -q -p no:cacheprovider -m cuda tests/ops/test_device.py -k values_are)
mapfile -t elsewhere < <(grep -rl --include 'test_*.py' --exclude-dir ops mark.cuda tests)
names='
from benchmarks.ops import CASES
from benchmarks.steps import STEPS
print("ops:", *CASES)
print("steps:", *STEPS)
'

stage facts bash -c "$facts"
if [[ -n $wheel ]]; then
  stage wheel_install python3 -m pip install --quiet --no-deps --no-index --upgrade \
    --target "$out/wheel" "$wheel"
  stage wheel_values env -C "$out" PYTHONPATH="$out/wheel" GPU_CHECK_ROOT="$out/wheel" \
    python3 -c "$values"
fi
stage build env PYDDFAST_CUDA="$cuda" python3 setup.py --quiet build_ext --inplace
stage values env GPU_CHECK_ROOT="$PWD" python3 -c "$values"
stage tests_device "${tests[@]}" tests/ops/test_device.py # graphs, streams, every operator
stage tests_ops "${tests[@]}" tests/ops --ignore tests/ops/test_device.py --ignore tests/ops/test_large.py
stage tests_large "${tests[@]}" tests/ops/test_large.py # more than 2^31 elements
stage tests_elsewhere "${tests[@]}" "${elsewhere[@]}"
stage memcheck bash -c "$sanitized" memcheck "${small[@]}"
stage racecheck bash -c "$sanitized" racecheck "${small[@]}"
stage names python3 -c "$names"
for op in $(sed -n 's/^ops: //p' "$out/names.log" 2>/dev/null); do
  stage "bench_$op" python3 -m benchmarks run --device "$device" "${bench[@]}" --limit 420 \
    --ops "$op" --out "$out/$op.json"
done
for step in $(sed -n 's/^steps: //p' "$out/names.log" 2>/dev/null); do
  stage "step_$step" python3 -m benchmarks run --device "$device" "${bench[@]}" --limit 420 \
    --end-to-end "$step" --out "$out/step-$step.json"
done

# In the order in which they ended.
mapfile -t records < <(sort "$out"/stages/*.json 2>/dev/null)
{
  separator='['
  for record in "${records[@]}"; do
    printf '%s%s' "$separator" "$record" && separator=', '
  done
  [[ $separator == '[' ]] && echo '[]' || echo ']'
} >"$out/summary.tmp" && mv "$out/summary.tmp" "$out/summary.json" || die "$out takes no summary"
cat "$out/summary.json"
if ((${#pending[@]} > 0)); then
  echo "left for the next call with the same OUT: ${pending[*]}"
  exit 75
fi
rm -rf "$out/wheel"
! grep -qv '"exit": 0,' <<<"$(cat "$out"/stages/*.json)"
