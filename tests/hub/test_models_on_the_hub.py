"""Models go to a Hub and come back in fresh interpreters, through the real client and stock calls.

One visit pushes; the tests look at what lies on the server and at what other visits load from it.
"""

from __future__ import annotations

import json

import pytest

from tests.hub.conftest import OWNER, OWNER_TOKEN, STRANGER_TOKEN, Visit, Visitor
from tests.hub.repositories import Storage, StoredFile
from tests.hub.server import HubServer

NAME = f"{OWNER}/reformer"
SHARDED = f"{OWNER}/reformer-in-shards"
HALF = f"{OWNER}/reformer-in-bf16"
PAIR = f"{OWNER}/reformer-for-summaries"
PRIVATE = f"{OWNER}/reformer-private"

PUSH = f"""
import torch
from huggingface_hub import HfApi
from reformer_hf import (
    ReformerConfig, ReformerForCausalLM, ReformerForConditionalGeneration, ReformerSeq2SeqConfig,
    byte_tokenizer,
)
tokenizer = byte_tokenizer(append_eos=False)
sizes = dict(
    vocab_size=len(tokenizer), hidden_size=32, num_attention_heads=2, attention_head_size=16,
    initializer_range=0.2, hash_seed=1,
)
ids = torch.arange(3, 43)[None]
def total(model, **inputs): return float(model.eval()(ids, **inputs).logits.float().abs().sum())
with torch.no_grad():
    torch.manual_seed(0)
    model = ReformerForCausalLM(ReformerConfig(attn_layers=["local", "lsh"], **sizes))
    first = model.push_to_hub("{NAME}", tags=["first-try"])
    tokenizer.push_to_hub("{NAME}")
    HfApi().create_tag("{NAME}", tag="v1")
    report(first=total(model), first_commit=first.oid)
    model.reformer.word_embeddings.weight.mul_(1.5)
    model.push_to_hub("{NAME}")
    report(second=total(model))
    model.push_to_hub("{SHARDED}", max_shard_size="20KB")
    model.push_to_hub("{PRIVATE}", private=True)
    pair = ReformerForConditionalGeneration(
        ReformerSeq2SeqConfig(attn_layers=["lsh"], decoder_attn_layers=["full"], **sizes)
    )
    pair.push_to_hub("{PAIR}", revision="draft")
    report(pair=total(pair, decoder_input_ids=ids))
    model.to(torch.bfloat16).push_to_hub("{HALF}")
    report(half=total(model))
"""
PULL = """
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
ids = torch.arange(3, 43)[None]
def total(model, **inputs):
    with torch.no_grad():
        return float(model(ids, **inputs).logits.float().abs().sum())
def load(name, auto=AutoModelForCausalLM, **options): return auto.from_pretrained(name, **options)
"""


@pytest.fixture(scope="module")
def pushed(hub: HubServer, visit: Visitor) -> Visit:
    """The visit that pushed, with every large file above 20 kB in parts."""
    hub.part_size = 20_000
    return visit(hub, PUSH, home="author", token=OWNER_TOKEN)


def file_of(storage: Storage, name: str, path: str, branch: str = "main") -> StoredFile:
    return storage.repositories[name].commit_at(branch).files[path]


def text_of(storage: Storage, name: str, path: str, branch: str = "main") -> str:
    return storage.content(file_of(storage, name, path, branch)).decode()


def test_a_push_brings_weights_code_tokenizer_and_card(pushed: Visit, storage: Storage) -> None:
    assert pushed["first_commit"] in storage.repositories[NAME].commits
    files = storage.repositories[NAME].commit_at("main").files
    assert {
        "README.md",
        "config.json",
        "configuration_reformer_hf.py",
        "generation_config.json",
        "model.safetensors",
        "modeling_reformer_hf.py",
        "tokenizer.json",
        "tokenizer_config.json",
    } <= files.keys()
    assert files["model.safetensors"].content is None, "weights belong into the object store"
    assert not [path for path in files if path.endswith(".bin")]
    config = json.loads(text_of(storage, NAME, "config.json"))
    assert config["auto_map"] == {
        "AutoConfig": "configuration_reformer_hf.ReformerConfig",
        "AutoModelForCausalLM": "modeling_reformer_hf.ReformerForCausalLM",
    }
    card = text_of(storage, NAME, "README.md")
    assert "- first-try" in card
    assert "library_name: transformers" in card


def test_weights_go_up_in_parts_and_in_shards(
    pushed: Visit, hub: HubServer, storage: Storage
) -> None:
    oid = file_of(storage, NAME, "model.safetensors").oid
    assert f"PUT /store/{oid}/2" in hub.log
    assert f"POST /store/{oid}/complete" in hub.log
    index = json.loads(text_of(storage, SHARDED, "model.safetensors.index.json"))
    shards = set(index["weight_map"].values())
    assert len(shards) > 2
    assert shards <= storage.repositories[SHARDED].commit_at("main").files.keys()


def test_with_the_package_every_form_comes_back(
    pushed: Visit, hub: HubServer, visit: Visitor
) -> None:
    code = f"""{PULL}
import reformer_hf
model = load("{NAME}")
report(kind=type(model).__name__, latest=total(model))
report(tag=total(load("{NAME}", revision="v1")))
report(pinned=total(load("{NAME}", revision="{pushed["first_commit"]}")))
report(shards=total(load("{SHARDED}")))
half = load("{HALF}")
report(half=total(half), dtype=str(half.dtype))
pair = load("{PAIR}", AutoModelForSeq2SeqLM, revision="draft")
report(pair=total(pair, decoder_input_ids=ids))
tokenizer = AutoTokenizer.from_pretrained("{NAME}")
report(text=tokenizer.decode(tokenizer("An owl.").input_ids))
"""
    seen = visit(hub, code, home="reader")
    assert seen["kind"] == "ReformerForCausalLM"
    assert seen["latest"] == seen["shards"] == pushed["second"]
    assert seen["tag"] == seen["pinned"] == pushed["first"] != pushed["second"]
    assert (seen["half"], seen["dtype"]) == (pushed["half"], "torch.bfloat16")
    assert seen["pair"] == pushed["pair"]
    assert seen["text"] == "An owl."


def test_trusted_remote_code_opens_it_without_an_import(
    pushed: Visit, hub: HubServer, visit: Visitor
) -> None:
    code = f"""{PULL}
model = load("{NAME}", trust_remote_code=True, revision="v1", code_revision="v1")
report(kind=type(model).__name__, first=total(model))
"""
    seen = visit(hub, code, home="trusting")
    assert (seen["kind"], seen["first"]) == ("ReformerForCausalLM", pushed["first"])


def test_without_the_package_the_error_says_what_to_install(
    pushed: Visit, hub: HubServer, visit: Visitor
) -> None:
    code = f'{PULL}\nload("{NAME}", trust_remote_code=True)'
    seen = visit(hub, code, home="bare", package=False)
    assert seen.failed
    assert "pip install reformer_hf" in seen.stderr


def test_others_do_not_see_what_is_private_and_do_not_write(
    pushed: Visit, hub: HubServer, storage: Storage, visit: Visitor
) -> None:
    assert storage.repositories[PRIVATE].private
    before = storage.repositories[NAME].branches["main"]
    code = f"""{PULL}
from huggingface_hub.errors import HfHubHTTPError
import reformer_hf
def read(**options):
    try:
        return total(load("{PRIVATE}", **options))
    except OSError as error:
        return str(error)
report(anonymous=read(), stranger=read(token="{STRANGER_TOKEN}"), wrong=read(token="hf_wrong"))
report(owner=read(token="{OWNER_TOKEN}"))
model = load("{NAME}")
def write(name, token):
    try:
        model.push_to_hub(name, token=token)
        return 200
    except HfHubHTTPError as error:
        return error.response.status_code
report(over=write("{NAME}", "{STRANGER_TOKEN}"), new=write("{OWNER}/new", "hf_wrong"))
"""
    seen = visit(hub, code, home="stranger")
    for refused in ("anonymous", "stranger"):
        assert f"{PRIVATE} is not a local folder and is not a valid model" in seen[refused]
    assert "Invalid credentials in Authorization header" in seen["wrong"]
    assert seen["owner"] == pushed["second"]
    assert (seen["over"], seen["new"]) == (403, 401)
    assert storage.repositories[NAME].branches["main"] == before
    assert f"{OWNER}/new" not in storage.repositories


def test_a_trainer_pushes_every_checkpoint_and_its_card(
    hub: HubServer, storage: Storage, visit: Visitor
) -> None:
    name = f"{OWNER}/trained"
    code = f"""
import torch
from transformers import (
    DataCollatorForLanguageModeling, Trainer, TrainerCallback, TrainingArguments,
)
from reformer_hf import ReformerConfig, ReformerForCausalLM, byte_tokenizer
class OneUploadAtATime(TrainerCallback):  # or the next checkpoint overwrites what is going up
    def on_step_begin(self, *arguments, **others):
        if trainer.push_in_progress is not None:
            trainer.push_in_progress.wait_until_done()
tokenizer = byte_tokenizer(append_eos=False)
config = ReformerConfig(
    vocab_size=len(tokenizer), hidden_size=16, num_attention_heads=1, attn_layers=["lsh"]
)
args = TrainingArguments(
    "out", max_steps=2, save_steps=1, push_to_hub=True, hub_model_id="{name}",
    hub_strategy="every_save", report_to="none", use_cpu=True,
)
model = ReformerForCausalLM(config)
data = [tokenizer("a little text")] * 4
trainer = Trainer(
    model, args, DataCollatorForLanguageModeling(tokenizer, mlm=False), data,
    processing_class=tokenizer, callbacks=[OneUploadAtATime()],
)
trainer.train()
trainer.push_to_hub(dataset="some notes")
weight = model.reformer.word_embeddings.weight
again = ReformerForCausalLM.from_pretrained("{name}")
report(same=torch.equal(weight, again.reformer.word_embeddings.weight))
"""
    seen = visit(hub, code, home="trainer", token=OWNER_TOKEN)
    assert seen["same"]
    titles = [commit.title for commit in storage.repositories[name].commits.values()]
    assert titles[1:] == [
        "Training in progress, step 1",
        "Training in progress, step 2",
        "End of training",
    ]
    assert "generated_from_trainer" in text_of(storage, name, "README.md")
    files = storage.repositories[name].commit_at("main").files
    assert {"tokenizer.json", "modeling_reformer_hf.py", "training_args.bin"} <= files.keys()


def test_pickles_and_broken_files_on_the_hub_are_named(
    hub: HubServer, storage: Storage, visit: Visitor, pushed: Visit
) -> None:
    good = storage.repositories[SHARDED].commit_at("main").files
    shard = min(path for path in good if path.startswith("model-00001"))
    pickled = {path: file for path, file in good.items() if not path.startswith("model")}
    broken = {
        "pickled": {**pickled, "pytorch_model.bin": StoredFile.regular(b"\x80\x02")},
        "cut-shard": {**good, shard: StoredFile.regular(storage.content(good[shard])[:-1])},
        "no-index": {**good, "model.safetensors.index.json": StoredFile.regular(b"{}")},
    }
    for name, files in broken.items():
        storage.create(f"{OWNER}/{name}", private=False)
        storage.repositories[f"{OWNER}/{name}"].add("main", "spoiled", files)
    code = f"""{PULL}
import reformer_hf
for name in {list(broken)}:
    try:
        load("{OWNER}/" + name)
    except ValueError as error:
        report(**{{name: str(error)}})
"""
    seen = visit(hub, code, home="victim")
    assert f"got pytorch_model.bin in {OWNER}/pickled: only safetensors are read" in seen["pickled"]
    assert f"{shard} is not a whole safetensors file" in seen["cut-shard"]
    assert "model.safetensors.index.json must hold the objects" in seen["no-index"]
    assert not any("GET" in line and "pytorch_model" in line for line in hub.log)
