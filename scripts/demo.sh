#!/usr/bin/env bash
# The main job, from nothing: makes an environment, then fine-tunes a seq2seq Reformer to summarize
# long documents (the Python standard library's modules, sources of 2,048 tokens; the summary is
# the docstring that was taken out of each) and writes the model, its card, the loss curve and
# three samples to outputs/demo. At most ten minutes on two CPU cores; no network beyond the
# installation.
#
#   bash scripts/demo.sh                          further arguments go to run_summarization.py
#   bash scripts/demo.sh --max_steps 50 --output_dir /tmp/demo
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
bash "$root/scripts/setup_venv.sh" train

# The demo's own folder starts anew each time; a folder that the caller names is left as it is.
case " $* " in
*" --output_dir"*) ;;
*) set -- --output_dir "$root/outputs/demo" --overwrite_output_dir "$@" ;;
esac

export TOKENIZERS_PARALLELISM=false
# Of an option given twice the last counts, so that the caller's arguments go over these.
exec "$root/.venv/bin/python" "$root/scripts/run_summarization.py" \
    --preset demo \
    --do_train \
    --do_eval \
    --do_predict \
    --max_source_length 2048 \
    --max_target_length 64 \
    --vocab_size 4096 \
    --max_eval_samples 48 \
    --max_predict_samples 48 \
    --per_device_train_batch_size 4 \
    --per_device_eval_batch_size 16 \
    --train_sampling_strategy group_by_length \
    --lr_scheduler_type cosine \
    --warmup_steps 20 \
    --max_steps 300 \
    --eval_on_start \
    --eval_strategy steps \
    --eval_steps 100 \
    --save_steps 150 \
    --save_total_limit 1 \
    --logging_steps 20 \
    --no_repeat_ngram_size 3 \
    --seed 0 \
    "$@"
