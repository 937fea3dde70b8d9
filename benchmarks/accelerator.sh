#!/bin/sh
# Everything that docs/performance.md wants of an accelerator, in one call of less than ten minutes:
#
#     benchmarks/accelerator.sh <GLUE: folder or hub id> <BERT tokenizer: folder or hub id> <folder for the results> [cuda|cpu]
#
# The race in bf16 and fp32, gangs of up to 32 with the teacher's outputs on the device, and where the time goes.
# With `cpu` it only shows that it runs: few rows, no repeats.
set -eu
data=$1 tokenizer=$2 results=$3 accelerator=${4:-cuda}
python=${PYTHON:-python}
mkdir -p "$results"
common="--data $data --tokenizer $tokenizer --accelerator $accelerator --work $results/made"

if [ "$accelerator" = cpu ]; then
    race="--quick --contenders c d e-memory f-memory-2" scaling="compiled" steps="--steps 3 --repeats 1" rows=64
else
    race="--steps 60 --repeats 2 --contenders a c d d-fp32 e-memory e-memory-fp32 e-disk f-online-8 f-memory-8 f-memory-32"
    scaling="gangs compiled batches" steps="--steps 60 --repeats 1" rows=16000
    nvidia-smi > "$results/device.txt" || true
fi

failed=
part() {  # seconds, name, command: one that fails or takes too long costs the others nothing
    seconds=$1 name=$2
    shift 2
    echo "== $name"
    timeout "$seconds" "$@" > "$results/$name.md" 2> "$results/$name.log" || failed="$failed $name"
    cat "$results/$name.md"
}

# shellcheck disable=SC2086  # the settings are words
part 300 race $python -m benchmarks.race $common --precision bf16 $race --out "$results/race.json"
# shellcheck disable=SC2086
part 170 scaling $python -m benchmarks.scaling $common $steps --questions $scaling --out "$results/scaling.json"
part 100 profile $python train.py "teacher.path=$results/made/bert-base-shaped" data=glue task=mnli "data.path=$data" \
    "data.rows=$rows" data.held_out=64 data.proxy=1.0 outputs=memory module.dropout=0.0 "trainer.accelerator=$accelerator" \
    trainer.max_epochs=2 paths.export=null "paths.runs=$results/runs" profile=true "~latency" \
    "architectures=[{num_hidden_layers:4,num_attention_heads:12,hidden_size:288,intermediate_size:768,hidden_act:gelu}]"
if [ -n "$failed" ]; then
    echo "failed:$failed; see the logs in $results"
    exit 1
fi
echo "wrote $results"
