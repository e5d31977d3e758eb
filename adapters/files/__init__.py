"""Tensors in files, and what people keep experts in: PEFT folders, checkpoints and fine-tunes.

facts                what is known of an expert's files before any tensor is read
safetensors_reader   tensors that somebody else wrote, checked before any data is read
safetensors_writer   tensors written one at a time
atomic               files and folders that appear whole or not at all
checkpoint           the weights of a transformers model
peft                 PEFT LoRA folders
finetune             a full fine-tune as its difference from the base
delta_forms          the forms that the library keeps deltas in
"""
