"""The demo: a small base model, six LoRA experts, their tasks, an evaluation, an experiment.

__main__    the command line
base        the base model, made of a wheel once a machine
model       the base in transformers, and how prompts become tokens
train       trains a LoRA expert
finetune    trains a full fine-tune, and keeps it small
evaluate    exact match of the base or an expert
results     what trainings took, and how they score
forms       the full fine-tunes, served in each form that an expert can have
unlabelled  how well experts are routed to that no examples came with
strangers   how well prompts of people that no gate has heard are routed
twins       Twin-Merging of the experts beside the experts themselves
mixing      whether a mix is worth more than the better of its experts
segments    which requests the default policy answers in segments
jobs        questions with right answers, asked of a server
experiment  an A/B test from the first user to the verdict
browser     a real browser without a window
console_pictures  pictures of the console
visitors    questions without end to a running demo

tasks/ and suite/ draw prompts, everyday/ has those that no expert should answer, voices/ what
strangers ask; experts/ and finetunes/ are what was trained.
"""
