"""From a network and a loader to codes, decoded classes and accuracies."""
