"""What the training scripts share.

A script reads as: arguments, data, model, trainer, report.

arguments           what a user may ask for, and how a script refuses it
training_arguments  transformers' own, where their defaults do not hold here
precision           whether bf16 is the faster setting on this machine
device              what small studies compute on, and its name
data_files          json, jsonl, csv and txt files
records             csv and json text -> records, each with its line
data                files and Hub data sets -> splits -> columns of texts -> token ids
stdlib_corpus       the data of a run that names none
models              tokenizer, configuration and model: given ones, or new ones of a preset size
session             one run: start, training, evaluation, end
starting_point      anew, from a checkpoint, or with the model to evaluate
checkpoints         which of them are complete
run_arguments       what a run began with, and keeps when it is resumed
output_lock         one run at a time in an output directory
saving, whole_saves directories that are complete or not there, and the trainer that makes them
rouge               ROUGE, and what a token is in a language
bert_score          BERTScore
scoring             metrics, each next to a baseline
reporting           tables, samples, loss curve, model card
synthetic           small new models on drawn sequences

What only one task needs is in summarization, classification and language_modeling.
"""
