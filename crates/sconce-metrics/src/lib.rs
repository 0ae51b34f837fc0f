//! Metrics of vision models: top-k accuracy, retrieval recall.
