"""The paper's analyses: functions with typed inputs and results."""
