#!/usr/bin/env bash
# Everything that only a machine with a CUDA GPU can show.  Needs torch with CUDA, pytest, a compiler
# and nvcc; no network.  A stage that fails is recorded, and the next one runs.
#
#   benchmarks/gpu_check.sh OUT [WHEEL]
#
# OUT gets a log a stage, the benchmark results as JSON and summary.json; WHEEL is a wheel built
# elsewhere (with a CPU-only torch, another Python), to be loaded here unchanged; without it, the
# one under dist/ is taken, if there is one.
set -uo pipefail

if [[ $# -lt 1 || $# -gt 2 ]]; then
  echo "usage: ${BASH_SOURCE[0]} OUT [WHEEL]" >&2
  exit 2
fi
mkdir -p "$1"
out=$(realpath "$1") wheel=${2:+$(realpath "$2")}
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
if [[ -z $wheel ]]; then
  prebuilt=(dist/pyddfast-*.whl)
  [[ ! -f ${prebuilt[0]} ]] || wheel=$(realpath "${prebuilt[0]}")
fi
export PYDDFAST_STRICT=1 # a fallback to the twin would hide a kernel that does not run
readonly stage_limit=540 # seconds: short enough for machines that end a command after ten minutes
stages=() status=0

stage() {
  local name=$1 code start=$SECONDS
  shift
  echo "== $name: $*"
  timeout "$stage_limit" "$@" >"$out/$name.log" 2>&1
  code=$?
  ((code == 0)) || { status=1 && tail -n 20 "$out/$name.log"; }
  stages+=("{\"stage\": \"$name\", \"exit\": $code, \"seconds\": $((SECONDS - start))}")
}

# CUDA against the float64 twin, under whatever torch this is.
values='
import torch, pyddfast
from pyddfast import ops
print(pyddfast.__file__, torch.__version__, torch.cuda.get_device_name())
generator = torch.Generator().manual_seed(0)
for shape in [(256, 10), (64, 1000), (8, 21841)]:
    s, t = (3 * torch.randn(shape, generator=generator) for _ in range(2))
    results = []
    for student, teacher in ((s.cuda(), t.cuda()), (s.double(), t.double())):
        student.requires_grad_()
        loss, score = ops.kd_loss(student, teacher, 4.0, return_score=True)
        loss.backward()
        results.append([x.detach().double().cpu() for x in (loss, score, student.grad)])
    for name, got, want in zip(("loss", "score", "gradient"), *results):
        error = float((got - want).norm() / want.norm())
        print(shape, name, error)
        assert error <= 1e-6, (shape, name, error)
'

stage facts bash -c 'nvidia-smi; nvcc --version; python3 -V; python3 -c "import torch; print(torch.__version__)"'
if [[ -n $wheel ]]; then
  stage wheel_install python3 -m pip install --quiet --no-deps --no-index --target "$out/wheel" "$wheel"
  stage wheel_values env -C "$out" PYTHONPATH="$out/wheel" python3 -c "$values"
fi
stage build env PYDDFAST_CUDA=1 python3 setup.py --quiet build_ext --inplace
stage values python3 -c "$values"
stage tests python3 -m pytest -m cuda tests/ops
stage sanitizer compute-sanitizer --tool memcheck --error-exitcode 3 python3 -c "$values"
stage racecheck compute-sanitizer --tool racecheck --error-exitcode 3 python3 -c "$values"
for op in $(python3 -c 'from benchmarks.ops import CASES; print(*CASES)'); do
  stage "bench_$op" python3 -m benchmarks run --device cuda --ops "$op" --out "$out/$op.json"
done

(IFS=, && echo "[${stages[*]}]") >"$out/summary.json"
rm -rf "$out/wheel"
cat "$out/summary.json"
exit $status
