"""What a call is: the neuron's options, state, surrogates and reference, memory and strides."""
