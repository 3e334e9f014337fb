"""Small networks of the kinds that Avalanche's strategies ask for."""

import torch
from avalanche.models import IncrementalClassifier, MlpVAE, SimpleMLP
from avalanche.models.expert_gate import ExpertAutoencoder
from torch import nn

N_IN, N_CLASSES = 6, 6


class Detector(nn.Module):
    """What detectors of torchvision do: losses in training, boxes in evaluation."""

    def __init__(self):
        super().__init__()
        self.boxes = nn.Linear(3, 4)

    def forward(self, images, targets=None):
        boxes = [self.boxes(image.mean((1, 2))) for image in images]
        if targets is None:
            return [{"boxes": box[None]} for box in boxes]
        pairs = zip(boxes, targets, strict=True)
        return {"boxes": sum(((box - t["boxes"]) ** 2).mean() for box, t in pairs)}


def mlp():
    return SimpleMLP(num_classes=N_CLASSES, input_size=N_IN, hidden_size=8)


def features():
    return nn.Sequential(nn.Flatten(), nn.Linear(N_IN, 8), nn.ReLU())


def growing():
    return nn.Sequential(features(), IncrementalClassifier(8))


class WithFeatures(nn.Module):
    """Features and a classifier, by the names that some strategies ask for."""

    def __init__(self):
        super().__init__()
        self.feature_extractor, self.classifier = features(), nn.Linear(8, N_CLASSES)

    def forward(self, x):
        return self.classifier(self.feature_extractor(x))


class SmallViT(nn.Module):
    """What Avalanche's networks with prompts take and return, of two layers."""

    def __init__(self, prompt_pool=False, **_):
        super().__init__()
        self.has_prompts = prompt_pool
        self.embedding, self.prompt = nn.Linear(N_IN, 768), nn.Parameter(torch.zeros(768))

    def reset_classifier(self, n_classes):
        assert n_classes == 0

    def forward(self, x, task_id=None, cls_features=None, train=False):
        features = self.embedding(x).tanh()
        if not self.has_prompts:
            return {"pre_logits": features}
        if cls_features is not None:
            features = features + self.prompt * cls_features
        return {"logits": self.head(features), "reduce_sim": self.prompt.sum()}


def small_vit(model_name, **given):
    return SmallViT(**given)


def autoencoder():
    return MlpVAE((1, 2, 3), nhid=2)


def reconstruction():
    """An autoencoder without the pretrained network in front of it."""

    class Autoencoder(ExpertAutoencoder):
        def __init__(self):
            nn.Module.__init__(self)
            self.device, self.shape, self.feature_module = "cpu", (N_IN,), nn.Identity()
            self.encoder = nn.Sequential(nn.Linear(N_IN, 3), nn.ReLU())
            self.decoder = nn.Sequential(nn.Linear(3, N_IN), nn.Sigmoid())

    return Autoencoder()


def small_alexnet(weights=None):
    """Features, pooling and classifier by the names of torchvision's AlexNet, on 16 × 16 images."""
    model = nn.Module()
    pooling = nn.AdaptiveAvgPool2d(6)
    model.features = nn.Sequential(nn.Conv2d(3, 256, 3, 2, 1), nn.ReLU(), pooling)
    model.avgpool = nn.AdaptiveAvgPool2d(1)
    model.classifier = nn.Sequential(nn.Linear(256, 4), nn.ReLU(), nn.Linear(4, 10))
    model.forward = lambda x: model.classifier(model.avgpool(model.features(x)).flatten(1))
    return model
