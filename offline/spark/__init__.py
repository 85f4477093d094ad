"""Apache Spark: learning, ranking and publishing on its executors; an extra, which only these modules import."""
