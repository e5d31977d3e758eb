"""Tensors in files, and what people keep experts in: PEFT folders, checkpoints and fine-tunes.

facts                what is known of an expert's files before any tensor is read
paths                what is wrong with a path that a user gave
safetensors_reader   tensors that somebody else wrote, checked before any data is read
safetensors_writer   tensors written one at a time
atomic               files and folders that appear whole or not at all
digests              the digest of tensors in files
checkpoint           the weights of a transformers model
beside_weights       what lies beside them: tokenizer, templates, code
quantised            the shapes of weights that a quantised checkpoint packs
peft                 PEFT LoRA folders, as experts and written
peft_config          every option of one: honoured, harmless or refused
peft_names           what each tensor of one is, and which weight of a base it belongs to
peft_reader          the tensors of one
peft_deltas          those that are more than factors, such as DoRA, as their change of the base
model_config         what a configuration says of the computation, beside the weights
servable             which weights slots can serve, and why not the others
finetune             a full fine-tune as its difference from the base
delta_forms          the forms that the library keeps deltas in
"""
