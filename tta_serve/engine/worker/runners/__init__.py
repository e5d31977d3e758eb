"""What mixture slots need of vLLM's two model runners.

The first one runs unless VLLM_USE_V2_MODEL_RUNNER is set to 1, by which vLLM itself chooses too.

runner_seam    what is needed, and what is the same in both
first_runner   vllm.v1.worker.gpu_model_runner
second_runner  vllm.v1.worker.gpu.model_runner
"""
