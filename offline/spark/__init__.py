"""Training, ranking and publishing on Apache Spark; needs the extra `spark`."""
